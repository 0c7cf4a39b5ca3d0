"""A region's text as calls of the native library's kernels, or the reason why it cannot be.

Every activation is a matrix of float32 rows, one a token, so views and transposes cost nothing and vanish. Neighbours are
joined on the way: gate, up and SiLU-and-multiply become `swiglu`, an add becomes the residual of the product before it, and
attention reads the cache itself up to each token's position. Which weights are kept as panels of a matrix comes out too.
"""

from __future__ import annotations

from typing import Any

from glmc.native import latent, vision
from glmc.native.calls import Form, Heads, Index, Layout, Lowered, Need, New, Refused, Rows, State, Stride, Weight
from glmc.native.walk import Lowerer, op
from glmc.program import Region

_AXIAL = 2
"""Coordinates of a patch."""
_LANES = 512
"""The most lanes whose axes a call can name."""


def lowered(region: Region) -> Lowered:
    """Raises Refused with the reason."""
    return Lowerer(region).done()


@op("operator.getitem")
def _getitem(lower: Lowerer, name: str, pair: tuple, index: int) -> Any:
    return pair[index]


@op("aten.sym_size.int")
def _size(lower: Lowerer, name: str, of: Any, dim: int) -> Any:
    return Index("size")


@op("aten.arange.default")
def _arange(lower: Lowerer, name: str, size: Any) -> Any:
    return Index("rows")


@op("aten.unsqueeze.default")
def _unsqueeze(lower: Lowerer, name: str, x: Any, dim: int) -> Any:
    if isinstance(x, Index) or (dim == -4 and (getattr(x, "swapped", False) or isinstance(x, vision.HeadsFirst))):
        return x
    if dim == -2:
        return latent.heads_of(lower, x)
    if dim != -3:
        raise Refused("unsqueeze of activations")
    rows = lower.rows(x)  # one head before the tokens
    return Rows(rows.reg, rows.offset, rows.width, swapped=True)


@op("aten.le.Tensor")
def _le(lower: Lowerer, name: str, x: Any, y: Any) -> Any:
    if (x, y) != (Index("slots"), Index("positions")):
        raise Refused("a comparison that is not slots with positions")
    return Index("mask")


@op("aten.view.default", "aten.reshape.default", "aten.contiguous.default", "aten.flatten.using_ints")
def _view(lower: Lowerer, name: str, x: Any, *sizes: Any) -> Any:
    rows = lower.rows(x)
    if sizes and isinstance(sizes[0], list):
        if len(sizes[0]) == 4 and sizes[0][0] == -1:
            return vision.blocks(lower, rows, sizes[0])
        if sizes[0] != [Index("size"), -1] and sizes[0][-1] != rows.width:
            raise Refused("a view that cuts rows")
    return rows


@op("aten.transpose.int")
def _transpose(lower: Lowerer, name: str, x: Any, first: int, second: int) -> Any:
    if isinstance(x, Heads) and {first, second} == {-3, -2}:
        return vision.HeadsFirst(x)
    if not isinstance(x, Rows | State | New) or {first, second} != {-3, -2}:
        raise Refused("a transpose that does not exchange tokens and heads")
    return type(x)(**{**x.__dict__, "swapped": not x.swapped})


@op("aten.to.dtype")
def _to(lower: Lowerer, name: str, x: Any, dtype: str) -> Any:
    if dtype != "torch.float32":
        raise Refused(f"a conversion to {dtype}")
    return Weight(x.name, x.spec, wide=True) if isinstance(x, Weight) else lower.rows(x)


@op("aten.slice.Tensor")
def _slice(lower: Lowerer, name: str, x: Any, dim: int, start: int, stop: int, step: int) -> Any:
    if dim != -1 or step != 1:
        raise Refused("a slice that is not of columns")
    if isinstance(x, Heads):
        return Heads(x.reg, x.count, x.step, x.offset + start, min(stop, x.width) - start)
    rows = lower.rows(x)
    return Rows(rows.reg, rows.offset + start, min(stop, rows.width) - start)


@op("aten.embedding.default")
def _embedding(lower: Lowerer, name: str, table: Any, ids: Any, *_: Any) -> Any:
    if ids != Index("ids"):
        raise Refused("an embedding of something else than ids")
    out = lower.new(int(table.spec.shape[1]))
    lower.need(table, Need("table"))
    lower.call("embedding", [out.width, Stride(out.reg), Form(table.name)], [table, out], writes=(out.reg,))
    return out


@op("glmc.rope_table")
def _rope_table(lower: Lowerer, name: str, positions: Any, frequencies: Any, *, axis_map: Any, axial: bool, scale: float,
                dtype: str) -> Any:
    lanes = int(frequencies.spec.shape[0])
    several = positions == Index("turns")
    if (not several and positions != Index("positions")) or several != bool(axis_map or axial):
        raise Refused("angles of something else than positions, or of axes that nothing tells apart")
    width = lanes * (_AXIAL if axial else 1)
    axes = list(axis_map or [])
    if axes:
        lower.equal((len(axes), max(axes) < 4, lanes <= _LANES), (lanes, True, True))
    words = [sum(axis << 2 * i for i, axis in enumerate(axes[at:at + 32])) for at in range(0, len(axes), 32)]
    cos, sin = lower.new(width), lower.new(width)
    lower.call("rope_table", [width, Stride(cos.reg), int(several), lanes if axial else 0, *words],
               [lower.vector(frequencies), cos, sin], [scale], (cos.reg, sin.reg))
    return cos, sin


@op("glmc.rms_norm")
def _rms_norm(lower: Lowerer, name: str, x: Any, weight: Any = None, *, eps: float) -> Any:
    rows = lower.rows(x)
    out = lower.new(rows.width)
    lower.call("rms_norm", [rows.width, Stride(rows.reg), Stride(out.reg)], [rows, lower.vector(weight, rows.width), out],
               [eps], (out.reg,))
    return out


@op("glmc.add_rms_norm")
def _add_rms_norm(lower: Lowerer, name: str, residual: Any, x: Any, weight: Any, *, eps: float) -> Any:
    call = lower.single(lower.rows(x), "linear")
    if call is not None and call.p[4] is None:  # the product adds the residual
        total = _add(lower, name, residual, x)
        return _rms_norm(lower, name, total, weight, eps=eps), total
    first, second = lower.rows(residual), lower.rows(x)
    lower.equal(first.width, second.width)
    total, out = lower.new(first.width), lower.new(first.width)
    lower.call("add_rms_norm", [out.width, *(Stride(r.reg) for r in (first, second, total, out))],
               [first, second, lower.vector(weight, out.width), total, out], [eps], (total.reg, out.reg))
    return out, total


@op("aten.add.Tensor")
def _add(lower: Lowerer, name: str, x: Any, y: Any) -> Any:
    first, second = lower.rows(x), lower.rows(y)
    lower.equal(first.width, second.width)
    for residual, product in ((first, second), (second, first)):
        call = lower.single(product, "linear")
        if call is not None and call.p[4] is None and residual.reg != product.reg and lower.written_before(residual, call):
            call.p[4], call.n[5] = residual, Stride(residual.reg)
            return product
    out = lower.new(first.width)
    lower.call("add_rms_norm", [out.width, Stride(first.reg), Stride(second.reg), Stride(out.reg), 0],
               [first, second, None, out, None], [0.0], (out.reg,))
    return out


@op("aten.linear.default")
def _linear(lower: Lowerer, name: str, x: Any, weight: Any, bias: Any = None) -> Any:
    rows = lower.rows(x)
    lower.need(weight, Need("matrix", wide=getattr(weight, "wide", False)), rows.width)
    out = lower.new(int(weight.spec.shape[0]))
    lower.call("linear", [rows.width, out.width, Stride(rows.reg), Stride(out.reg), Form(weight.name), 0],
               [rows, weight, lower.vector(bias, out.width), out, None], writes=(out.reg,))
    return out


@op("glmc.silu_mul")
def _silu_mul(lower: Lowerer, name: str, gate: Any, up: Any) -> Any:
    one, other = lower.rows(gate), lower.rows(up)
    call = next((c for c in lower.calls if c.writes == (one.reg,) and c.kernel == "linear"), None)
    halves = one.reg == other.reg and (one.offset, other.offset) == (0, one.width) and one.width == other.width
    whole = 2 * one.width == lower.widths[one.reg]
    if call is None or not halves or not whole or lower.uses[lower.made[one.reg]] != 2:
        raise Refused("SiLU-and-multiply of something else than one product's two halves")
    weight = call.p[1]
    lower.needs[weight.name] = Need("matrix", halves=True)
    out = lower.new(one.width)
    call.kernel, call.writes = "swiglu", (out.reg,)
    call.n = [call.n[0], out.width, call.n[2], Stride(out.reg), call.n[4]]
    call.p = [call.p[0], weight, call.p[2], out]
    return out


@op("glmc.split_qkv_norm_rope")
def _split(lower: Lowerer, name: str, qkv: Any, cos: Any, sin: Any, *more: Any, heads: int, kv_heads: int,
           eps: float | None, read: int, write: int, axis_map: Any) -> Any:
    packed, cosines = lower.rows(qkv), lower.rows(cos)
    width = packed.width // (heads + 2 * kv_heads)
    if axis_map is not None:
        raise Refused("positions of more than one axis")
    weights, caches, slots = more[:4], more[4:6], more[6:]
    if caches and (slots != (Index("positions"),) or not all(isinstance(cache, State) for cache in caches)):
        raise Refused("a cache that is written otherwise than by rows and positions")
    if width % 2 or width > 1024:
        raise Refused(f"a head of {width} channels")
    q = lower.new(heads * width)
    lower.equal(packed.width, width * (heads + 2 * kv_heads))
    lower.equal(lower.rows(sin).width, cosines.width)
    if 2 * cosines.width > width:
        raise Refused("a table that is wider than a head")
    parts = [lower.vector(w, width) for w in (*weights, *(None,) * (4 - len(weights)))]
    at = lower.call("split_qkv_norm_rope",
                    [heads, kv_heads, width, cosines.width, Stride(packed.reg), Stride(q.reg), Stride(cosines.reg), read, write,
                     Layout("form"), Layout("sequence"), Layout("keys"), Layout("values")],
                    [packed, cosines, lower.rows(sin), *parts, q, None, None], [eps or 0.0], (q.reg,))
    new = New(at, "keys"), New(at, "values")
    return (q, *(_put(lower, cache, one) for cache, one in zip(caches, new, strict=True))) if caches else (q, *new)


@op("aten.index_put_.default")
def _index_put(lower: Lowerer, name: str, cache: Any, where: list, new: Any) -> Any:
    if not isinstance(new, New | Rows | Heads) or not isinstance(cache, State) or where != [Index("rows"), Index("positions")]:
        raise Refused("a cache that is written otherwise than by rows and positions")
    return _put(lower, cache, new) if isinstance(new, New) else latent.written(lower, cache, new)


def _put(lower: Lowerer, cache: State, new: New) -> State:
    """The call that makes the new keys or values writes them into their cache."""
    if cache.name != new.kind:
        raise Refused(f"{new.kind} that go to the cache of {cache.name}")
    lower.equal(list(cache.spec.shape[2:]), lower.calls[new.call].n[1:3])
    lower.calls[new.call].p[8 if new.kind == "keys" else 9] = cache
    return cache


@op("glmc.attention")
def _attention(lower: Lowerer, name: str, q: Any, keys: Any, values: Any, mask: Any = None, *, scale: float) -> Any:
    if mask != Index("mask") or not all(isinstance(s, State) and s.swapped for s in (keys, values)):
        raise Refused("attention that does not see the cache up to each position")
    if not isinstance(q, Rows) or not q.swapped or keys.spec.shape != values.spec.shape:
        raise Refused("attention whose queries, keys and values differ in shape")
    kv, width = int(keys.spec.shape[2]), int(keys.spec.shape[3])
    lower.equal(q.width % (kv * width), 0)
    out = lower.new(q.width)
    lower.call("attention", [q.width // width, kv, width, Stride(q.reg), Stride(out.reg), Layout("form"),
                                    Layout("sequence"), Layout("keys"), Layout("values"), Layout("slots")],
               [Rows(q.reg, q.offset, q.width), keys, values, out], [scale], (out.reg,))
    return Rows(out.reg, 0, out.width, swapped=True)


@op("glmc.moe_route")
def _moe_route(lower: Lowerer, name: str, logits: Any, correction: Any, *, groups: int, kept: int, top: int, normalise: bool,
               scale: float) -> Any:
    rows = lower.rows(logits)
    router = next((c for c in lower.calls if c.kernel == "linear" and c.writes == (rows.reg,)), None)
    if router is not None:  # choices are made in float32, whatever the model's dtype
        lower.needs[router.p[1].name] = Need("matrix", wide=True)
    lower.equal([rows.width % groups, kept <= groups, top <= rows.width], [0, True, True])
    weights, experts = lower.new(top), lower.new(top)
    lower.call("moe_route", [rows.width, groups, kept, top, int(normalise), Stride(rows.reg), Stride(weights.reg)],
               [rows, lower.vector(correction, rows.width), weights, experts], [scale], (weights.reg, experts.reg))
    return weights, experts


@op("glmc.moe_experts")
def _moe_experts(lower: Lowerer, name: str, x: Any, experts: Any, weights: Any, gate_up: Any, down: Any) -> Any:
    rows, chosen, shares = lower.rows(x), lower.rows(experts), lower.rows(weights)
    lower.need(gate_up, Need("experts", halves=True))
    lower.need(down, Need("experts"))
    count, width, inner = map(int, down.spec.shape)
    lower.equal([list(gate_up.spec.shape), width, shares.width], [[count, 2 * inner, width], rows.width, chosen.width])
    out = lower.new(width)
    lower.call("moe_experts", [width, inner, count, chosen.width, Stride(rows.reg), Stride(out.reg), Stride(shares.reg),
                               Form(gate_up.name), Form(down.name)],
               [rows, shares, chosen, gate_up, down, out], writes=(out.reg,))
    return out
