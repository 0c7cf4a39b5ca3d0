"""What each op makes of values that ranks share: one rule an op, over the lines of a region's text.

A value is whole on every rank, cut along a dim, or each rank's part of a sum. A rule says which it is behind the op, and writes
sizes that depend on the number of ranks as `96 // N`. What needs the whole of a sum raises NeedsSum: there the region is cut
and an all_reduce put between. An op without a rule takes and makes whole values only.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from glmc.placement import Cut

Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Value:
    """shape: the whole one, None where no rule knows it. why: the published plan's entries that made it cut or a sum."""

    dtype: str
    shape: Shape | None = None
    cut: Cut | None = None
    partial: bool = False
    why: frozenset[str] = frozenset()
    weight: bool = False

    @property
    def whole(self) -> bool:
        return self.cut is None and not self.partial

    def like(self, shape: Shape | None = None, cut: Cut | None = None) -> Value:
        """The result of an op: what is told differs."""
        return dataclasses.replace(self, shape=shape, cut=cut, weight=False)


class NotPlaced(Exception):
    """An op does not take what its operands are. `why`: the plan's entries to give up."""

    def __init__(self, reason: str, why: frozenset[str]) -> None:
        super().__init__(reason)
        self.why = why


class NeedsSum(Exception):
    """An op needs the whole of a sum. `name`: the line that makes it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}
"""An op's name -> its rule: rule(site, operands ...)."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """The function is the rule of these ops."""
    def keep(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function
    return keep


@dataclass
class Site:
    """A line while its rule looks at it: its call, which a rule may change, the names of what it reads, and the caches that it
    writes, as they are then."""

    call: ast.Call
    names: dict[int, str]
    written: dict[str, Value] = field(default_factory=dict)

    def refuse(self, reason: str, *values: Any) -> NotPlaced:
        why = frozenset().union(*(v.why for v in values if isinstance(v, Value)))
        return NotPlaced(f"{ast.unparse(self.call.func)}: {reason}", why)

    def summed(self, *values: Any) -> None:
        """Raise NeedsSum for the first operand that is a part of a sum."""
        for value in values:
            if isinstance(value, Value) and value.partial:
                raise NeedsSum(self.names[id(value)])

    def be_whole(self, reason: str, *values: Any) -> None:
        """Raise NeedsSum or NotPlaced for an operand that is not whole."""
        self.summed(*values)
        for value in values:
            if isinstance(value, Value) and value.cut is not None:
                raise self.refuse(reason, *values)

    def write(self, cache: Value, new: Value) -> Value:
        """The cache with `new` in it: it is cut as what is written to it."""
        self.summed(new)
        if new.cut and new.cut.dim != -2:
            raise self.refuse("a cache of parts of heads", new)
        found = self.written[self.names[id(cache)]] = dataclasses.replace(cache, cut=new.cut, why=new.why)
        return found

    def divide(self, node: ast.expr) -> ast.expr:
        """A literal as its share among the ranks."""
        return ast.BinOp(node, ast.FloorDiv(), ast.Name("N", ast.Load()))

    def divide_keyword(self, name: str) -> None:
        for keyword in self.call.keywords:
            if keyword.arg == name:
                keyword.value = self.divide(keyword.value)


def otherwise(site: Site, *values: Any, **_: Any) -> Value:
    """The rule of every op that has none."""
    flat = [v for value in values for v in (value if isinstance(value, list | tuple) else [value])]
    site.be_whole("no rule says what it makes of a part", *flat)
    return next((v.like() for v in flat if isinstance(v, Value)), Value("int64"))


@rule("aten.linear.default")
def _linear(site: Site, x: Value, weight: Value, bias: Value | None = None) -> Value:
    shape = (*x.shape[:-1], weight.shape[-2]) if x.shape and weight.shape else None
    if weight.cut is None:
        site.be_whole("a whole matrix of a part of the inputs", x)
        if bias is not None and bias.cut:
            raise site.refuse("a part of the bias of a whole matrix", bias)
        return x.like(shape)
    why = x.why | weight.why
    if weight.cut.dim == -2:
        site.be_whole("rows of a matrix for a part of the inputs", x)
        if bias is not None and (bias.cut is None or bias.cut.parts != weight.cut.parts):
            raise site.refuse("a bias that is not cut as its matrix", weight, bias)
        return Value(x.dtype, shape, Cut(-1, weight.cut.parts), why=why)
    site.summed(x)
    if x.cut != weight.cut or bias is not None:
        raise site.refuse("columns of a matrix whose inputs are not cut alike, or with a bias", x, weight, bias)
    return Value(x.dtype, shape, partial=True, why=why)


@rule("glmc.moe_experts")
def _moe_experts(site: Site, x: Value, experts: Value, shares: Value, gate_up: Value, down: Value) -> Value:
    site.be_whole("experts of parts of rows", x, experts, shares)
    if gate_up.cut is None and down.cut is None:
        return x.like(x.shape)
    inner = down.cut.parts if down.cut else ()
    if down.cut is None or gate_up.cut is None or (down.cut.dim, gate_up.cut.dim, gate_up.cut.parts) != (-1, -2, inner * 2):
        raise site.refuse("experts whose two matrices are not cut alike", gate_up, down)
    return Value(x.dtype, x.shape, partial=True, why=gate_up.why | down.why)


@rule("glmc.rms_norm", "glmc.layer_norm", "glmc.rope", "glmc.qk_norm_rope")
def _by_channels(site: Site, x: Value, *more: Any, **_: Any) -> Value:
    """What looks at the last dim of each row or head by itself."""
    site.summed(x)
    site.be_whole("a part of a weight or of a table", *more)
    if x.cut and x.cut.dim == -1:
        raise site.refuse("a norm over channels that are cut", x)
    return x.like(x.shape, x.cut)


@rule("glmc.add_rms_norm")
def _add_rms_norm(site: Site, residual: Value, x: Value, weight: Value, **_: Any) -> tuple[Value, Value]:
    site.be_whole("a norm over channels that are cut", residual, x, weight)
    return residual.like(residual.shape), residual.like(residual.shape)


@rule("aten.add.Tensor", "aten.mul.Tensor", "aten.silu.default", "aten.to.dtype", "aten.contiguous.default",
      "aten.clone.default", "glmc.silu_mul")
def _elementwise(site: Site, *values: Any, **_: Any) -> Value:
    tensors = [v for v in values if isinstance(v, Value)]
    why = frozenset().union(*(v.why for v in tensors))
    name = ast.unparse(site.call.func)
    first = tensors[0]
    dtype = values[1].removeprefix("torch.") if name == "aten.to.dtype" else first.dtype
    moves = name in ("aten.contiguous.default", "aten.clone.default")
    if all(v.partial for v in tensors) and (moves or name == "aten.add.Tensor"):
        return Value(first.dtype, first.shape, partial=True, why=why)
    site.summed(*tensors)
    if any(v.cut != first.cut for v in tensors):
        raise site.refuse("operands that are cut otherwise than each other", *tensors)
    widest = max((v.shape for v in tensors if v.shape), key=len, default=None)
    return Value(dtype, widest, first.cut, why=why)


@rule("glmc.split_qkv_norm_rope")
def _split(site: Site, qkv: Value, cos: Value, sin: Value, q_weight: Any = None, k_weight: Any = None, q_bias: Any = None,
           k_bias: Any = None, keys: Any = None, values: Any = None, slots: Any = None, *, heads: int, kv_heads: int, **_: Any,
           ) -> tuple[Value, ...]:
    site.summed(qkv)
    site.be_whole("a part of a norm, a table or the places", cos, sin, q_weight, k_weight, q_bias, k_bias, slots)
    lead = qkv.shape[:-1] if qkv.shape else ()
    width = int(qkv.shape[-1]) // (heads + 2 * kv_heads) if qkv.shape else 0
    counts = (heads, kv_heads, kv_heads)
    if qkv.cut is not None:
        if qkv.cut != Cut(-1, tuple(n * width for n in counts)):
            raise site.refuse("queries, keys and values that are not cut each by itself", qkv)
        site.divide_keyword("heads")
        site.divide_keyword("kv_heads")
    q, k, v = (qkv.like((*lead, n, width), Cut(-2, (n,)) if qkv.cut else None) for n in counts)
    return (q, k, v) if keys is None else (q, site.write(keys, k), site.write(values, v))


@rule("aten.index_put_.default")
def _index_put(site: Site, cache: Value, where: list, new: Value) -> Value:
    site.be_whole("a part of the places", *where)
    return site.write(cache, new)


@rule("glmc.attention")
def _attention(site: Site, q: Value, keys: Value, values: Value, mask: Any = None, **_: Any) -> Value:
    site.summed(q)
    site.be_whole("a part of the mask", mask)
    cuts = [v.cut for v in (q, keys, values)]
    if any(cuts) and (not all(cuts) or {cut.dim for cut in cuts if cut} != {-3}):
        raise site.refuse("queries, keys and values that do not all have a part of the heads", q, keys, values)
    shape = (*q.shape[:-1], values.shape[-1]) if q.shape and values.shape else None
    return q.like(shape, q.cut)


@rule("glmc.latent_attention")
def _latent_attention(site: Site, plain: Value, turned: Value, latent: Value, lanes: Value, kv_b: Value, *more: Any, **_: Any,
                      ) -> Value:
    site.summed(plain, turned)
    site.be_whole("a part of the latents, the mask or the choice", latent, lanes, *more)
    if plain.shape is None or kv_b.shape is None or (plain.cut, kv_b.cut) == (None, None):
        site.be_whole("a part of the heads", plain, turned, kv_b)
        return plain.like()
    (*lead, tokens, heads, width), rows = plain.shape, int(kv_b.shape[-2])
    if not plain.cut == turned.cut == Cut(-2, (int(heads),)) or kv_b.cut != Cut(-2, (rows,)):
        raise site.refuse("queries and their matrix that do not all have a part of the heads", plain, turned, kv_b)
    shape = (*lead, heads, tokens, rows // int(heads) - int(width))
    return Value(plain.dtype, shape, Cut(-3, (int(heads),)), why=plain.why | turned.why | kv_b.why)
