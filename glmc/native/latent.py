"""The lines of latent attention as calls: heads that are parts of rows, caches of compressed rows, chosen slots."""

from __future__ import annotations

import math
from typing import Any

from glmc.native.cache import parts_of
from glmc.native.calls import Form, Heads, Index, Layout, Need, Refused, Rows, State, Stride
from glmc.native.vision import Patches
from glmc.native.walk import Lowerer, op


def heads_of(lower: Lowerer, value: Any) -> Heads:
    """Rows as one head, or heads as they are."""
    if isinstance(value, Heads):
        return value
    rows = lower.rows(value)
    return Heads(rows.reg, 1, rows.width, rows.offset, rows.width)


def part(value: Heads) -> Rows:
    """The operand of a call that steps from head to head by itself: it begins at the first head's first channel."""
    return Rows(value.reg, value.offset, (value.count - 1) * value.step + value.width)


@op("aten.unflatten.int")
def _unflatten(lower: Lowerer, name: str, x: Any, dim: int, sizes: list[int]) -> Any:
    rows = lower.rows(x)
    if dim == -1 and len(sizes) > 2:
        lower.equal(math.prod(sizes), rows.width)
        return Patches(rows, tuple(sizes))
    if dim != -1 or len(sizes) != 2:
        raise Refused("a row that is cut into something else than heads")
    lower.equal(sizes[0] * sizes[1], rows.width)
    return Heads(rows.reg, sizes[0], sizes[1], rows.offset, sizes[1])


@op("aten.squeeze.dim")
def _squeeze(lower: Lowerer, name: str, x: Any, dim: int) -> Any:
    if not isinstance(x, Heads) or dim != -2 or x.count != 1:
        raise Refused("a squeeze of something else than a single head")
    return Rows(x.reg, x.offset, x.width)


@op("glmc.rope")
def _rope(lower: Lowerer, name: str, x: Any, cos: Any, sin: Any, *, read: int, write: int) -> Any:
    heads, cosines = heads_of(lower, x), lower.rows(cos)
    lower.equal(lower.rows(sin).width, cosines.width)
    if 2 * cosines.width > heads.width:
        raise Refused("a table that is wider than a head")
    out = lower.new(heads.count * heads.width)
    lower.call("rope", [heads.count, heads.width, cosines.width, Stride(heads.reg), heads.step, Stride(out.reg),
                        Stride(cosines.reg), read, write], [part(heads), cosines, sin, out], writes=(out.reg,))
    return Heads(out.reg, heads.count, heads.width, 0, heads.width)


@op("glmc.layer_norm")
def _layer_norm(lower: Lowerer, name: str, x: Any, weight: Any = None, bias: Any = None, *, eps: float) -> Any:
    rows = lower.rows(x)
    out = lower.new(rows.width)
    lower.call("layer_norm", [rows.width, Stride(rows.reg), Stride(out.reg)],
               [rows, lower.vector(weight, rows.width), lower.vector(bias, rows.width), out], [eps], (out.reg,))
    return out


def written(lower: Lowerer, cache: State, new: Any) -> State:
    """Rows into a latent layer's caches: a compressed row has two places there."""
    heads = heads_of(lower, new)
    lower.equal((heads.count, heads.width), tuple(cache.spec.shape[2:]))
    parts = parts_of(lower.caches)
    into = "index" if cache.name == "index" else "keys"
    first = parts["values"].width if cache.name == "turned" else 0
    lower.call("cache_rows", [heads.width, Stride(heads.reg), first, parts[into].width, Layout("form"), Layout("sequence")],
               [part(heads), State(into, cache.spec), State("values", cache.spec) if cache.name == "latent" else None])
    return cache


@op("glmc.lightning_indexer")
def _lightning_indexer(lower: Lowerer, name: str, query: Any, index: Any, shares: Any, mask: Any, *, scale: float,
                       head_scale: float, top: int) -> Any:
    heads, weights = heads_of(lower, query), lower.rows(shares)
    if mask != Index("mask") or not isinstance(index, State) or index.name != "index" or scale <= 0:
        raise Refused("an indexer that does not see its own keys up to each position")
    lower.equal((heads.count, heads.width), (weights.width, int(index.spec.shape[3])))
    out = lower.new(top)
    lower.call("lightning_indexer",
               [heads.count, heads.width, Stride(heads.reg), heads.step, Stride(weights.reg), Stride(out.reg), top,
                Layout("form"), Layout("sequence"), Layout("slots")],
               [part(heads), weights, index, out], [scale * head_scale], (out.reg,))
    return out


def opens(plain: int, turned: int, rank: int, value: int) -> int:
    """New tokens of a sequence from which on it is cheaper to open the compressed rows; 0 where it never is.

    Closed, a slot costs each token and head 2 rank + turned products; opened plain + turned + value, and once
    rank (plain + value).
    """
    saved = 2 * rank - plain - value
    return -(-rank * (plain + value) // saved) if saved > 0 else 0


@op("glmc.latent_attention")
def _latent_attention(lower: Lowerer, name: str, q_plain: Any, q_turned: Any, latent: Any, turned: Any, kv_b: Any, mask: Any,
                      chosen: Any = None, *, scale: float) -> Any:
    plain, turning = heads_of(lower, q_plain), heads_of(lower, q_turned)
    if mask != Index("mask") or [getattr(s, "name", None) for s in (latent, turned)] != ["latent", "turned"]:
        raise Refused("latent attention that does not see the cache up to each position")
    rank, lanes = int(latent.spec.shape[3]), int(turned.spec.shape[3])
    value = int(kv_b.spec.shape[0]) // plain.count - plain.width
    lower.equal((turning.count, turning.width, int(kv_b.spec.shape[0])),
                (plain.count, lanes, plain.count * (plain.width + value)))
    if value < 1 or (plain.width | lanes | rank) % 2:
        raise Refused("latents or heads of an odd number of channels")
    lower.need(kv_b, Need("latent", split=(plain.count, plain.width, value)), rank)
    picked = None if chosen is None else lower.rows(chosen)
    out = lower.new(plain.count * value)
    lower.call("latent_attention",
               [plain.count, plain.width, lanes, rank, value, Stride(plain.reg), plain.step, Stride(turning.reg), turning.step,
                Stride(out.reg), Form(kv_b.name), Layout("form"), Layout("sequence"), Layout("slots"),
                picked.width if picked else 0, Stride(picked.reg) if picked else 0, opens(plain.width, lanes, rank, value)],
               [part(plain), part(turning), kv_b, State("keys", latent.spec), State("values", latent.spec), picked, out],
               [scale], (out.reg,))
    return Rows(out.reg, 0, out.width, swapped=True)
