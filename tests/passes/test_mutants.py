"""A reference with one step changed is not found, unless the change leaves an instance of the same maths.

Mutants are made mechanically from each reference's own trace, so that a new fusion is tried without a line here.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch
import traced
from torch import fx, nn

from glmc.passes import declare
from glmc.passes.rewrite import rewrite
from glmc.passes.unify import outputs_of

ATEN = torch.ops.aten
SIBLINGS = {ATEN.rsqrt.default: ATEN.sqrt.default, ATEN.add.Tensor: ATEN.sub.Tensor, ATEN.mul.Tensor: ATEN.div.Tensor,
            ATEN.neg.default: ATEN.abs.default, ATEN.silu.default: ATEN.sigmoid.default,
            ATEN.mean.dim: ATEN.sum.dim_IntList, ATEN.pow.Tensor_Scalar: ATEN.remainder.Scalar}
COMMUTATIVE = (ATEN.add.Tensor, ATEN.mul.Tensor)
# Not a power of two, so that an int is never mistaken for a size that occurs.
OTHER = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v * 3,
         torch.dtype: lambda v: torch.float64 if v == torch.float32 else torch.float32}
Change = tuple[str, Callable[[fx.Graph], None]]


def steps(graph: fx.Graph) -> list[fx.Node]:
    return [n for n in graph.nodes if n.op == "call_function"]


def replaced(tree, old, number, new):
    """`tree` with occurrence `number` of leaf `old` (by identity for nodes) replaced, and how many were passed."""
    seen = 0

    def walk(value):
        nonlocal seen
        if isinstance(value, (list, tuple)):
            return type(value)([walk(v) for v in value])
        if isinstance(value, dict):
            return {k: walk(v) for k, v in value.items()}
        if value is old or (not isinstance(old, fx.Node) and type(value) is type(old) and value == old):
            seen += 1
            return new if seen - 1 == number else value
        return value

    return walk(tree), seen


def edit(at: int, old, number: int, new) -> Callable[[fx.Graph], None]:
    """Replace occurrence `number` of leaf `old` among the arguments of step `at`; node leaves are given by position."""
    def change(graph: fx.Graph) -> None:
        nodes, step = list(graph.nodes), steps(graph)[at]
        before, after = (nodes[v[1]] if isinstance(v, tuple) else v for v in (old, new))
        (step.args, step.kwargs), _ = replaced((step.args, step.kwargs), before, number, after)

    return change


def leaves(tree) -> Iterator:
    if isinstance(tree, (list, tuple)):
        for value in tree:
            yield from leaves(value)
    elif isinstance(tree, dict):
        yield from leaves(list(tree.values()))
    else:
        yield tree


def drop(at: int) -> Callable[[fx.Graph], None]:
    """Put a step's first input in its place."""
    def change(graph: fx.Graph) -> None:
        step = steps(graph)[at]
        step.replace_all_uses_with(step.all_input_nodes[0])
        graph.erase_node(step)

    return change


def turn(at: int) -> Callable[[fx.Graph], None]:
    """Reverse the list of a cat or stack, or swap a step's two tensors."""
    def change(graph: fx.Graph) -> None:
        step = steps(graph)[at]
        first, *rest = step.args
        step.args = (first[::-1], *rest) if isinstance(first, (list, tuple)) else (rest[0], first, *rest[1:])

    return change


def rename(at: int) -> Callable[[fx.Graph], None]:
    """Put a sibling op in a step's place."""
    def change(graph: fx.Graph) -> None:
        step = steps(graph)[at]
        step.target = SIBLINGS[step.target]

    return change


def changes(graph: fx.Graph) -> Iterator[Change]:
    """Every single change of the kinds above, each with its name."""
    position = {n: i for i, n in enumerate(graph.nodes)}
    for at, step in enumerate(steps(graph)):
        seen = Counter()
        for leaf in leaves((step.args, step.kwargs)):
            number = seen[leaf, type(leaf)]
            seen[leaf, type(leaf)] += 1
            if isinstance(leaf, fx.Node):
                for other in position:
                    if position[other] < position[step] and other is not leaf:
                        yield (f"rewire {step}: {leaf} to {other}",
                               edit(at, ("node", position[leaf]), number, ("node", position[other])))
            elif type(leaf) in OTHER:
                yield f"literal {step}: {leaf}", edit(at, leaf, number, OTHER[type(leaf)](leaf))
        if step.all_input_nodes:
            yield f"drop {step}", drop(at)
        if isinstance(step.args[0], (list, tuple)) or (len(step.args) > 1 and isinstance(step.args[1], fx.Node)):
            yield f"turn {step}", turn(at)
        if step.target in SIBLINGS:
            yield f"rename {step}", rename(at)


class _Shapes(fx.Interpreter):
    """Gives every node the value it has now, as its `val`."""

    def run_node(self, n: fx.Node):
        n.meta["val"] = super().run_node(n)
        return n.meta["val"]


def mutant(graph: fx.Graph, change: Callable[[fx.Graph], None], tensors: list[torch.Tensor]) -> fx.Graph | None:
    """A copy of `graph`, changed; None where the change makes no sense: sizes do not fit, or an argument is refused."""
    made = copy.deepcopy(graph)
    try:
        change(made)
        made.eliminate_dead_code()
        _Shapes(fx.GraphModule(nn.Module(), made)).run(*tensors)
    except (RuntimeError, IndexError, TypeError, OverflowError, ValueError):
        return None
    return made


@pytest.mark.parametrize("name", declare.names())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mutants_are_refused(name, dtype):
    fusion = declare.load(name)
    sizes = {**traced.SIZES[1], "D": 14, "R": 6}
    tensors, values = traced.normal(fusion, sizes, dtype), traced.scalars(fusion)
    graph = traced.graph_of(fusion.reference, tensors, values)
    refused, kept, wrong = 0, [], []
    matcher = traced.Matcher()
    for what, change in changes(graph):
        made = mutant(graph, change, tensors)
        if made is None:
            continue
        sites = matcher.find(fusion, made).sites
        if not sites:
            refused += 1
            continue
        kept.append(what)
        (site,) = sites
        same = list(site.tensors.values()) == [n for n in made.nodes if n.op == "placeholder"]
        other_scalar = same and site.scalars != values
        shared = len(set(site.tensors.values())) < len(site.tensors)
        # Without the rounding before it, the weight scales a float32 row: the same maths, applied to the widened row.
        later = any(t.op != "placeholder" for t in site.tensors.values())
        swapped = what.startswith("turn") and any(n.target in COMMUTATIVE for n in made.nodes)
        before = traced.run(made, tensors)
        outputs = [outputs_of(made).index(o) for o in site.outputs]
        rewrite(made, [site])
        after = traced.run(made, tensors)
        equal = traced.worst([after[i] for i in outputs], [before[i] for i in outputs]) <= 4 * torch.finfo(dtype).eps
        if not (equal and (other_scalar or shared or later or swapped)):
            wrong.append(what)
    assert not wrong, wrong
    assert refused >= 3 * len(steps(graph)) - 3, (refused, kept)


def test_the_mutants_are_many_and_of_every_kind():
    fusion = declare.load("rope_half")
    graph = traced.graph_of(fusion.reference, traced.normal(fusion, traced.SIZES[1], torch.float32), {})
    kinds = Counter(what.split()[0] for what, _ in changes(graph))
    assert all(kinds[k] for k in ("literal", "rewire", "drop", "turn", "rename")), kinds
