"""The lines of a vision tower, and of a text model that sees what it found, as calls: patches, blocks of them, images.

A convolution whose kernel covers its whole input is a product with the flattened kernel. Blocks of merge * merge patches lie
behind each other, so they are joined into one row, a patch's channels side by side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from glmc.native.calls import Form, Heads, Index, Layout, Need, New, Refused, Rows, Slots, Stride, Weight
from glmc.native.walk import Lowerer, op

_PANEL = 32
_WIDEST = 1024
"""Channels of a head that a call turns, or leaves as they are, on its way to the keys."""


@dataclass(frozen=True)
class Patches:
    """Rows as [T, C, ...] or [C, ...]: a row is one patch's values."""

    rows: Rows
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class HeadsFirst:
    """Heads that stand before the patches."""

    heads: Heads


@dataclass(frozen=True)
class Blocks:
    """Rows as [T / (m m), m, m, C]; first: channels stand before the places."""

    rows: Rows
    merge: int
    first: bool = False


def convolved(lower: Lowerer, rows: Rows, weight: Any, bias: Any, need: Need) -> Rows:
    """The product of rows with a kernel [N, C, ...] that covers one of them."""
    lower.equal(math.prod(weight.spec.shape[1:]), rows.width)
    lower.need(weight, need)
    out = lower.new(int(weight.spec.shape[0]))
    lower.call("linear", [rows.width, out.width, Stride(rows.reg), Stride(out.reg), Form(weight.name), 0],
               [rows, weight, lower.vector(bias, out.width), out, None], writes=(out.reg,))
    return out


@op("aten.conv3d.default")
def _conv3d(lower: Lowerer, name: str, x: Any, weight: Any, bias: Any = None, stride: Any = (), *more: Any) -> Any:
    if not isinstance(x, Patches) or not isinstance(weight, Weight) or more or tuple(weight.spec.shape[1:]) != x.sizes \
            or tuple(stride) != x.sizes[1:]:
        raise Refused("a convolution of something else than whole patches")
    return convolved(lower, x.rows, weight, bias, Need("matrix"))


def blocks(lower: Lowerer, rows: Rows, sizes: list[Any]) -> Blocks:
    """Rows seen as [-1, m, m, C]."""
    if sizes[0] != -1 or sizes[1] != sizes[2] or sizes[3] != rows.width:
        raise Refused("a view that cuts rows")
    return Blocks(lower.whole(rows), sizes[1])


@op("aten.permute.default")
def _permute(lower: Lowerer, name: str, x: Any, order: list[int]) -> Any:
    if not isinstance(x, Blocks) or x.first or order != [0, 3, 1, 2]:
        raise Refused("a permutation of something else than blocks of patches")
    return Blocks(x.rows, x.merge, first=True)


@op("aten.conv2d.default")
def _conv2d(lower: Lowerer, name: str, x: Any, weight: Any, bias: Any = None, stride: Any = (), *more: Any) -> Any:
    if isinstance(x, Patches):
        return _conv3d(lower, name, x, weight, bias, stride, *more)
    if not isinstance(x, Blocks) or not x.first or not isinstance(weight, Weight) or more:
        raise Refused("a convolution of something else than blocks of patches")
    lower.equal((tuple(weight.spec.shape[1:]), tuple(stride)), ((x.rows.width, x.merge, x.merge), (x.merge, x.merge)))
    count, rows = x.merge**2, x.rows
    joined = lower.new(count * rows.width)
    lower.call("merge_rows", [rows.width, count, Stride(rows.reg), Stride(joined.reg)], [rows, joined], writes=(joined.reg,))
    return convolved(lower, joined, weight, bias, Need("matrix", last=True))


@op("aten.gelu.default")
def _gelu(lower: Lowerer, name: str, x: Any) -> Any:
    rows = lower.rows(x)
    out = lower.new(rows.width)
    lower.call("gelu", [rows.width, Stride(rows.reg), Stride(out.reg)], [rows, out], writes=(out.reg,))
    return out


@op("glmc.position_table")
def _position_table(lower: Lowerer, name: str, table: Any, positions: Any, ends: Any, grid: Any, cubic: bool = True) -> Any:
    if (positions, ends, grid) != (Index("turns"), Index("ends"), Index("grid")):
        raise Refused("a table of positions that is sampled at something else than the patches' own")
    lower.need(table, Need("table"))
    count, width = map(int, table.spec.shape)
    side = math.isqrt(count)
    lower.equal(side * side, count)
    out = lower.new(width)
    lower.call("position_table", [width, side, Stride(out.reg), Form(table.name), int(not cubic)], [table, out],
               writes=(out.reg,))
    return out


@op("glmc.place_media")
def _place_media(lower: Lowerer, name: str, x: Any, features: Any, media: Any) -> Any:
    rows = lower.rows(x)
    if (features, media) != (Index("features"), Index("media")) or lower.single(rows, "embedding") is None:
        raise Refused("features that are placed elsewhere than among embeddings")
    lower.call("place_media", [rows.width, Stride(rows.reg)], [rows], writes=(rows.reg,))
    return rows


@op("glmc.attention_packed")
def _attention_packed(lower: Lowerer, name: str, q: Any, keys: Any, values: Any, ends: Any, scale: float) -> Any:
    if all(isinstance(x, HeadsFirst) for x in (q, keys, values)):
        q, keys, values = _unturned(lower, q.heads, keys.heads, values.heads)
    if ends != Index("ends") or not isinstance(q, Rows) or not q.swapped:
        raise Refused("attention inside something else than a step's images")
    if not all(isinstance(x, New) and x.swapped and x.kind == kind for x, kind in ((keys, "keys"), (values, "values"))) \
            or keys.call != values.call:
        raise Refused("attention inside images over keys and values that were not made together")
    made = lower.calls[keys.call]
    heads, kv, width = made.n[:3]
    lower.equal((kv, heads * width), (heads, q.width))
    if lower.half and width % 2:
        raise Refused("heads of an odd number of channels")
    # Keys and values lie as in a cache, in the memory of two registers: of rows they are not.
    size, padded = 4 // (1 + lower.half), -(-width // _PANEL) * _PANEL
    own, other = lower.new(heads * width * size // 4), lower.new(heads * padded * size // 4)
    places = [int(lower.half), 0, Slots(width * size), Slots(padded * size)]
    made.n[9:], made.p[8:], made.writes = places, [own, other], (*made.writes, own.reg, other.reg)
    out = lower.new(q.width)
    lower.call("attention_packed", [heads, width, Stride(q.reg), Stride(out.reg), places[0], *places[2:]],
               [Rows(q.reg, q.offset, q.width), own, other, out], [scale], (out.reg,))
    return Rows(out.reg, 0, out.width, swapped=True)


def _unturned(lower: Lowerer, q: Heads, keys: Heads, values: Heads) -> tuple[Rows, New, New]:
    """Queries, keys and values of one product that no position turns, laid out as those that one does."""
    size = q.count * q.width
    if any((x.reg, x.count, x.step, x.offset, x.width) != (q.reg, q.count, q.width, at * size, q.width)
           for at, x in enumerate((q, keys, values))) or lower.widths[q.reg] != 3 * size or q.width > _WIDEST:
        raise Refused("attention inside images over queries, keys and values that are not one product's thirds")
    out = lower.new(size)
    at = lower.call("split_qkv_norm_rope", [q.count, q.count, q.width, 0, Stride(q.reg), Stride(out.reg), 0, -2, -2,
                                            Layout("form"), Layout("sequence"), Layout("keys"), Layout("values")],
                    [Rows(q.reg, 0, 3 * size), *(None,) * 6, out, None, None], [0.0], (out.reg,))
    return Rows(out.reg, 0, size, swapped=True), New(at, "keys", swapped=True), New(at, "values", swapped=True)
