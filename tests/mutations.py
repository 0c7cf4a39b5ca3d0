"""Near misses: graphs of references and spellings with one thing changed, made mechanically, seeded and distinct.

Kinds: a literal changed, an op put in another's place, a step dropped, operands or a list turned round, an operand taken
from elsewhere, a slice moved by one, a dim counted one further, an inner value given out, an output withheld.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import traced
from torch import fx, nn
from torch.utils import _pytree as pytree

from glmc.errors import InternalError
from glmc.passes import declare
from glmc.passes.unify import outputs_of

A = torch.ops.aten
SIBLINGS = {A.rsqrt.default: A.sqrt.default, A.add.Tensor: A.sub.Tensor, A.sub.Tensor: A.add.Tensor,
            A.mul.Tensor: A.div.Tensor, A.neg.default: A.abs.default, A.silu.default: A.sigmoid.default,
            A.mean.dim: A.sum.dim_IntList, A.pow.Tensor_Scalar: A.remainder.Scalar, A.cos.default: A.sin.default,
            A.sin.default: A.cos.default, A.sigmoid.default: A.tanh.default, A.div_.Tensor: A.mul_.Tensor,
            A.stack.default: A.cat.default, A.topk.default: A.kthvalue.default, A.index_put_.default: A.index_put.default}
FAULTS = (RuntimeError, IndexError, TypeError, OverflowError, ValueError, NotImplementedError, InternalError)
"""What torch and our ops raise for a change that makes no sense."""
Change = Callable[[fx.Graph], None]


@dataclass(frozen=True)
class Source:
    """A graph to change: a form of a reference, or of one of its spellings."""

    fusion: str
    label: str
    graph: fx.Graph
    tensors: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Mutant:
    """A changed graph with a value in every step's `val`; what it computes, and what it was made to differ from."""

    kind: str
    label: str
    graph: fx.Graph
    results: tuple[torch.Tensor, ...]
    different: bool


def sources(name: str) -> Iterator[Source]:
    """The forms of fusion `name` at sizes that no sample has, and those of its spellings, each in one of the dtypes."""
    fusion = declare.load(name)
    for number, (pair, dtype, wide) in enumerate(traced.forms(fusion)):
        if len(fusion.samples) > 4 and not wide and (number // 2 + number) % 2:
            continue  # many forms: one dtype each
        maths = traced.unseen(fusion, pair, 1)
        yield Source(name, f"form {pair} {dtype} wide={wide}", traced.reference_graph(maths, dtype, wide),
                     tuple(traced.tensors_of(maths, dtype, wide)))
    for number, spelling in enumerate(fusion.also):
        for pair in range(0, len(spelling.theirs.samples), 2):
            dtype = traced.DTYPES[(number + pair // 2) % 2]
            yield Source(name, f"spelling {number} form {pair} {dtype}",
                         traced.reference_graph(spelling.theirs, dtype, False, pair),
                         tuple(traced.tensors_of(spelling.theirs, dtype, which=pair)))


def steps(graph: fx.Graph) -> list[fx.Node]:
    return [n for n in graph.nodes if n.op == "call_function"]


def _replaced(tree: Any, at: int, new: Any) -> Any:
    """`tree` with its leaf number `at` replaced."""
    flat, spec = _flat(tree)
    flat[at] = new
    return pytree.tree_unflatten(flat, spec)


def _flat(tree: Any) -> tuple[list, Any]:
    plain = pytree.tree_map(lambda leaf: leaf, (list(tree[0]), dict(tree[1])))
    return pytree.tree_flatten(plain)


def _edit(at: int, leaf: int, new: Any) -> Change:
    """Put `new` for a leaf of step `at`; a node is given by its place in the graph, as ("node", place)."""
    def change(graph: fx.Graph) -> None:
        step = steps(graph)[at]
        value = list(graph.nodes)[new[1]] if isinstance(new, tuple) else new
        args, kwargs = _replaced((step.args, step.kwargs), leaf, value)
        step.args, step.kwargs = tuple(args), kwargs

    return change


def _drop(at: int) -> Change:
    def change(graph: fx.Graph) -> None:
        step = steps(graph)[at]
        step.replace_all_uses_with(step.all_input_nodes[0])
        graph.erase_node(step)

    return change


def _turn(at: int) -> Change:
    def change(graph: fx.Graph) -> None:
        step = steps(graph)[at]
        first, *rest = step.args
        step.args = (first[::-1], *rest) if isinstance(first, (list, tuple)) else (rest[0], first, *rest[1:])

    return change


def _rename(at: int) -> Change:
    def change(graph: fx.Graph) -> None:
        step = steps(graph)[at]
        step.target = SIBLINGS[step.target]

    return change


def _move(at: int, by: int) -> Change:
    def change(graph: fx.Graph) -> None:
        step = steps(graph)[at]
        source, dim, start, end, *rest = step.args
        step.args = (source, dim, start + by, end if end > 1 << 60 else end + by, *rest)

    return change


def _output(at: int) -> Change:
    """Give step `at` out as well; a negative one withholds an output."""
    def change(graph: fx.Graph) -> None:
        results = list(outputs_of(graph))
        results = [*results, steps(graph)[at]] if at >= 0 else results[:at] + results[len(results) + at + 1:]
        graph.output_node().args = (tuple(results),)

    return change


def changes(graph: fx.Graph) -> Iterator[tuple[str, str, Change]]:
    """Every single change: its kind, what it does in words, and how."""
    place = {n: i for i, n in enumerate(graph.nodes)}
    results = outputs_of(graph)
    for at, step in enumerate(steps(graph)):
        for leaf, value in enumerate(_flat((step.args, step.kwargs))[0]):
            if isinstance(value, fx.Node):
                for other in place:
                    if place[other] < place[step] and other is not value:
                        yield "rewire", f"{step}: {value} to {other}", _edit(at, leaf, ("node", place[other]))
            else:
                for new in _others(value):
                    kind = "dtype" if isinstance(value, torch.dtype) else "literal"
                    yield kind, f"{step}: {value} to {new}", _edit(at, leaf, new)
        if step.all_input_nodes:
            yield "drop", f"{step}", _drop(at)
        if isinstance(step.args[0], (list, tuple)) or (len(step.args) > 1 and isinstance(step.args[1], fx.Node)):
            yield "turn", f"{step}", _turn(at)
        if step.target in SIBLINGS:
            yield "op", f"{step}", _rename(at)
        if step.target == A.slice.Tensor:
            yield "slice", f"{step} one further", _move(at, 1)
            yield "slice", f"{step} one back", _move(at, -1)
        if step not in results and isinstance(step.meta["val"], torch.Tensor):
            yield "given out", f"{step}", _output(at)
    for number in range(len(results) if len(results) > 1 else 0):
        yield "withheld", f"{results[number]}", _output(number - len(results))


def _others(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1] if abs(value) < 1 << 60 else [3]
    if isinstance(value, float):
        return [value * 3, -value]
    if isinstance(value, torch.dtype):
        return [d for d in (torch.float64, torch.float32, torch.bfloat16, torch.float16) if d is not value][:2]
    return []


class _Values(fx.Interpreter):
    """Gives every step the size and dtype it has now, as its `val`."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta["val"] = pytree.tree_map(lambda t: t.to("meta") if isinstance(t, torch.Tensor) else t, result)
        return result


def results(graph: fx.Graph, tensors: tuple[torch.Tensor, ...], how: type[fx.Interpreter]) -> tuple[torch.Tensor, ...]:
    """What a graph gives, and what it leaves in its inputs."""
    given = [t.clone() for t in tensors]
    with torch.no_grad():
        made = traced.everything(how(nn.Module(), graph=graph).run(*given))
    return (*made, *given)


def copied(graph: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A copy of a graph, and where each of its steps went."""
    made, where = fx.Graph(), {}
    made.output(made.graph_copy(graph, where))
    return made, where


def mutants(source: Source, most: int, seed: int = 0) -> Iterator[Mutant]:
    """Distinct mutants of `source`, at most `most` of a kind; those that torch refuses to run are left out."""
    rng = random.Random(f"{source.fusion} {source.label} {seed}")
    right, seen = results(source.graph, source.tensors, fx.Interpreter), {_text(source.graph)}
    listed = list(changes(source.graph))
    rng.shuffle(listed)
    made: Counter = Counter()
    for kind, label, change in listed:
        if made[kind] >= most:
            continue
        graph = copied(source.graph)[0]
        try:
            change(graph)
            graph.eliminate_dead_code()
            found = results(graph, source.tensors, _Values)
        except FAULTS:
            continue
        if _text(graph) in seen or not all(isinstance(f, torch.Tensor) for f in found):
            continue
        seen.add(_text(graph))
        made[kind] += 1
        yield Mutant(kind, f"{source.fusion}, {source.label}: {kind} {label}", graph, found,
                     kind not in ("given out", "withheld") and not traced.same(found, right))


def _text(graph: fx.Graph) -> str:
    return "\n".join(n.format_node() or "" for n in graph.nodes)
