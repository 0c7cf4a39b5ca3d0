"""Fusions' references as tidy graphs for tests: traced at sizes that no sample has, run, searched and measured."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn

from glmc.kernels import Op
from glmc.passes import declare
from glmc.passes.declare import Fusion, Maths
from glmc.passes.match import Found, Index, Matcher
from glmc.passes.respell import respell
from glmc.passes.tidy import tidy
from glmc.trace import trace_function

DTYPES = (torch.float32, torch.bfloat16)
EPS = 1.5625e-07
"""GLM-4's; a fusion that knows only the usual ones misses it."""


def _rows(s: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"H": 2, "I": 1, "...": (1,)}
    yield {"H": 17, "I": 17, "...": (3, 5)}
    yield {"H": 130, "I": 129, "...": (33,)}
    yield {"H": 64, "I": 64, "...": (2, 1, 3)}


def _rope(s: dict[str, Any]) -> Iterator[dict[str, Any]]:
    full = 2 * s["n"] == s["D"]
    for heads, width, lanes, lead in ((1, 4, 1, (1,)), (5, 14, 3, (3, 7)), (3, 32, 15, (33,)), (24, 130, 33, (2, 1, 3))):
        yield {"H": heads, "D": width, "n": width // 2 if full else lanes, "...": lead}


def _table(s: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for lanes, lead, scale in ((3, (1, 1), 1.0), (5, (2, 9), 0.75), (32, (33,), 3.0)):
        picked = s["axis_map"] is not None
        yield {"n": lanes, "...": (3, *lead) if picked else lead, "scale": scale,
               "axis_map": tuple((2 * i + 1) % 3 for i in range(lanes)) if picked else None}


def _route(s: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for tokens, groups, each, kept, top, scale in ((1, 1, 4, 1, 2, 1.0), (9, 5, 7, 2, 8, 2.5), (33, 3, 8, 3, 1, 0.3)):
        yield {"T": tokens, "E": groups * each, "groups": groups, "kept": kept, "top": top, "scale": scale}


def _experts(s: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for tokens, hidden, experts, top, inner in ((2, 8, 3, 2, 4), (9, 17, 7, 4, 5), (33, 10, 4, 2, 6)):
        yield {"T": tokens, "H": hidden, "E": experts, "K": top, "I": inner, "J": 2 * inner}


def _attention(s: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for rows, heads, keys, new, slots, width, scale in ((1, 1, 1, 1, 1, 4, 1.0), (3, 12, 3, 1, 8, 10, 0.1),
                                                       (2, 6, 2, 4, 17, 6, 0.75)):
        yield {"B": rows, "H": heads, "K": keys, "S": new, "L": slots, "D": width, "V": width + 2, "scale": scale}


def _qkv(s: dict[str, Any]) -> Iterator[dict[str, Any]]:
    full = 2 * s["n"] == s["D"]
    for heads, kv, width, n, rows, new in ((1, 1, 4, 1, 1, 1), (6, 3, 14, 3, 3, 7), (24, 2, 34, 9, 2, 5)):
        lanes = width // 2 if full else n
        yield {"heads": heads, "kv_heads": kv, "K": kv, "D": width, "N": (heads + 2 * kv) * width, "n": lanes, "B": rows,
               "S": new, "L": new + 6, "...": (rows, new),
               **({"axis_map": tuple((2 * i + 1) % 3 for i in range(lanes)), "cos": (3, rows, new, lanes),
                   "sin": (3, rows, new, lanes)} if s["axis_map"] else {})}


def _latent(s: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for rows, new, slots, heads, plain, turned, rank, value, scale in (
            (1, 1, 2, 2, 4, 2, 3, 3, 1.0), (3, 7, 19, 5, 9, 4, 17, 11, 0.3), (2, 4, 17, 3, 6, 2, 8, 5, 0.7),
            (3, 1, 37, 18, 9, 6, 17, 11, 0.3)):
        yield {"B": rows, "S": new, "L": slots, "H": heads, "N": plain, "E": turned, "R": rank, "M": heads * (plain + value),
               "C": min(slots, 6), "scale": scale}


def _indexer(s: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for rows, new, slots, heads, width, top in ((1, 1, 2, 1, 4, 1), (3, 7, 19, 5, 9, 6), (2, 4, 33, 3, 6, 8)):
        yield {"B": rows, "S": new, "L": slots, "H": heads, "D": width, "top": top, "scale": width ** -0.5, "head_scale": 0.3}


_UNSEEN = {"rope": _rope, "qk_norm_rope": _rope, "rope_table": _table, "moe_route": _route, "moe_experts": _experts,
           "attention": _attention, "latent_attention": _latent, "lightning_indexer": _indexer, "split_qkv_norm_rope": _qkv}
"""Fusion -> sizes that its samples do not have: one of everything, odd ones, many rows. The others have rows only."""


def unseen(fusion: Fusion, pair: int, which: int) -> Maths:
    """The fusion's maths with one sample: form `pair` at the unseen sizes number `which`; read and write trade places."""
    sample = fusion.maths.samples[pair]
    sizes = list(_UNSEEN.get(fusion.name, _rows)(sample))
    changed = {**sample, **sizes[which % len(sizes)]}
    if changed.get("eps") is not None:
        changed["eps"] = EPS * (1 + which)
    if "read" in changed:
        changed.update(read=-1 - which // 2 % 2, write=-1 - which % 2)
    return Maths(fusion.reference, (changed,))


def forms(fusion: Fusion) -> list[tuple[int, torch.dtype, bool]]:
    """Every (first sample of a form, dtype of the graph, whether what may be wide is float32)."""
    either = (False, True) if fusion.maths.may_be_wide else (False,)
    return [(pair, dtype, wide) for pair in range(0, len(fusion.samples), 2) for dtype in DTYPES
            for wide in fusion.samples[pair].get("wide", either) if not (wide and dtype is torch.float32)]


def every() -> list[tuple[str, int, torch.dtype, bool]]:
    """Every form of every declared fusion."""
    return [(fusion.name, *form) for fusion in declare.all_fusions() for form in forms(fusion)]


def label(value: Any) -> str:
    """How a parameter is named in a test's id."""
    return str(value).removeprefix("torch.")


def tensors_of(maths: Maths, dtype: torch.dtype, wide: bool = False, seed: int = 0, spread: float = 1.0,
               which: int = 0) -> list[torch.Tensor]:
    """Random tensors of sample `which`: every query sees something, and no two new tokens share a slot."""
    made = dict(zip(maths.present(which), maths.random(which, dtype, wide, seed), strict=True))
    for name, tensor in made.items():
        if tensor.is_floating_point():
            tensor.mul_(spread)
        elif name == "visible":
            tensor[..., 0] = True
            if "index" in made:  # enough of them for the indexer, and so nothing is chosen for want of others
                tensor.fill_(True)
        elif name == "chosen":
            tensor[..., 0] = 0
        elif name == "slots":
            places = torch.arange(tensor.shape[0])[:, None] + torch.arange(tensor.shape[1]) + 1 + seed
            tensor.copy_(places % maths.samples[which]["L"])
    return list(made.values())


def graph_of(function: Callable, tensors: list[torch.Tensor], values: dict[str, Any], dynamic: Any = None) -> fx.Graph:
    """`function` traced and tidied."""
    graph = trace_function(function, tensors, values, dynamic).graph
    tidy(graph)
    return graph


def reference_graph(maths: Maths, dtype: torch.dtype, wide: bool = False, which: int = 0) -> fx.Graph:
    """The maths at sample `which`, traced and tidied."""
    return graph_of(maths.bound(maths.present(which)), maths.empty(which, dtype, wide), maths.settings(which, dtype))


@functools.cache
def matcher() -> Matcher:
    """One matcher for the whole test process: patterns are made once."""
    return Matcher()


def find(fusion: Fusion, graph: fx.Graph) -> Found:
    """The sites of `fusion` in `graph`."""
    return matcher().find(fusion, Index(graph))


def normal_form(graph: fx.Graph) -> int:
    """Bring every spelling in a tidy graph to its reference's steps, in place; returns how many."""
    counts = respell(graph, declare.all_fusions(), matcher())
    tidy(graph)
    return sum(counts.values())


class ByReference(fx.Interpreter):
    """Runs a graph; a fused op that is a fusion is computed by its reference."""

    def call_function(self, target: Any, args: tuple, kwargs: dict) -> Any:
        if isinstance(target, Op) and target.name in declare.names():
            return declare.load(target.name).reference(*args, **kwargs)
        return super().call_function(target, args, kwargs)


@torch.no_grad()
def run(graph: fx.Graph, tensors: list[torch.Tensor], how: type[fx.Interpreter] = fx.Interpreter) -> tuple[torch.Tensor, ...]:
    """What `graph` computes from copies of `tensors`, its placeholders in order."""
    result = how(nn.Module(), graph=graph).run(*(t.clone() for t in tensors))
    return everything(result)


def everything(result: Any) -> tuple[torch.Tensor, ...]:
    """A result as a tuple."""
    return tuple(result) if isinstance(result, (list, tuple)) else (result,)


def same(a: tuple, b: tuple) -> bool:
    """Whether two results have the same dtypes, shapes and bits, any NaN equal to any."""
    return len(a) == len(b) and all(
        x.dtype == y.dtype and x.shape == y.shape and torch.equal(x.isnan(), y.isnan())
        and torch.equal(x.nan_to_num(0.0) if x.is_floating_point() else x,
                        y.nan_to_num(0.0) if y.is_floating_point() else y) for x, y in zip(a, b, strict=True))


class _Widen(torch.overrides.TorchFunctionMode):
    """Turns casts to float32 into casts to float64."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return func(*(torch.float64 if a is torch.float32 else a for a in args), **(kwargs or {}))


@torch.no_grad()
def exact(maths: Maths, present: tuple[str, ...], tensors: list[torch.Tensor], scalars: dict[str, Any]) -> tuple:
    """The maths with every float32 step taken in float64."""
    with _Widen():
        return everything(maths.bound(present)(
            *(t.double() if t.is_floating_point() else t.clone() for t in tensors), **scalars))


def in_order(name: str, results: tuple) -> tuple:
    """Results of the router and of the indexer with what each token chose in rising order: their own order means nothing."""
    if name == "lightning_indexer":
        return (results[0].sort(-1).values,)
    if name != "moe_route":
        return results
    weights, experts = results
    order = experts.argsort(-1)
    return weights.gather(-1, order), experts.gather(-1, order)


def worst(results: Any, wanted: Any) -> float:
    """The largest absolute difference, relative to the largest wanted value; NaN stays NaN."""
    results, wanted = everything(results), everything(wanted)
    scale = max(float(e.double().abs().max()) for e in wanted) or 1.0
    found = [float((r.double() - e.double()).abs().max()) for r, e in zip(results, wanted, strict=True)]
    return sum(f for f in found if f != f) or max(found) / scale
