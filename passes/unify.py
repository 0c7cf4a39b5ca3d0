"""Unify a pattern graph with the nodes of a model graph, from one output backwards.

Facts (literals) must be equal. A hole that equals a scalar parameter in both samples binds that scalar; any other hole is
open until the proof closes it. Operands of commutative operators are tried both ways. An outline compares less: the first
output's operators alone, neither literals nor whether one operand is used twice. What differs so can never match.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

_COMMUTATIVE = {torch.ops.aten.add.Tensor, torch.ops.aten.mul.Tensor}


@dataclass(frozen=True)
class Hole:
    """A literal of the reference that depends on shapes or scalars. `scalar` names the parameter it always equalled."""

    scalar: str | None

    @staticmethod
    def merge(a: Any, b: Any, values: dict[str, Any], others: dict[str, Any]) -> Any:
        """The argument tree `a` with a hole wherever `b`, from the other sample, has another literal."""
        if isinstance(a, fx.Node):
            return a
        whole = next((k for k in values if isinstance(values[k], tuple) and isinstance(a, (list, tuple))
                      and values[k] == tuple(a) and others[k] == tuple(b)), None)
        if whole is not None:
            return Hole(whole)
        if isinstance(a, (list, tuple)):
            return type(a)(Hole.merge(x, y, values, others) for x, y in zip(a, b, strict=True))
        if isinstance(a, dict):
            return {k: Hole.merge(v, b[k], values, others) for k, v in a.items()}
        if a == b and type(a) is type(b):
            return a
        return Hole(next((k for k in values if values[k] == a and others[k] == b), None))


def outputs_of(graph: fx.Graph) -> tuple[fx.Node, ...]:
    """The nodes that a traced reference returns."""
    out: Any = graph.output_node().args[0]
    return tuple(out) if isinstance(out, (list, tuple)) else (out,)


class Unifier:
    """One attempt. After `match`: `bound` maps pattern nodes to model nodes, `scalars` holds what was recovered."""

    def __init__(self, pattern: fx.Graph, outline: bool = False) -> None:
        self.pattern, self.outline = pattern, outline
        self.bound: dict[fx.Node, fx.Node] = {}
        self.scalars: dict[str, Any] = {}
        self.furthest = -1
        self._agreed = 0
        self._differing: tuple[fx.Node | None, Any] = (None, None)

    @property
    def disagreement(self) -> tuple[str, str]:
        """The step of the reference and what the model has in its place, where the attempt that went furthest ended."""
        step, node = self._differing
        return _short(step), _short(node)

    def bound_tensors(self) -> list[fx.Node]:
        """What the pattern's placeholders are bound to, in order."""
        return [self.bound[n] for n in self.pattern.nodes if n.op == "placeholder"]

    def match_all(self, root: fx.Node) -> bool:
        """Match the pattern's first output at `root` and every other output wherever it hangs on what is bound."""
        first, *others = outputs_of(self.pattern)
        return self.match(first, root) and (self.outline or all(out in self.bound or self._find(out) for out in others))

    def _find(self, out: fx.Node) -> bool:
        """Bind an output that the others do not depend on: follow its steps forward from the rarest bound step."""
        paths = [path for path in _paths(out) if path[0] in self.bound]
        paths.sort(key=lambda path: (len(self.bound[path[0]].users), len(path)))
        for start, *steps in paths[:1]:
            ends = [self.bound[start]]
            for step in steps:
                ends = [u for e in ends for u in e.users if u.target == step.target and u.op == step.op]
            for end in dict.fromkeys(ends):
                saved = self._save()
                if end not in self.bound.values() and self.match(out, end):
                    return True
                self._restore(saved)
        return False

    def _save(self) -> tuple[dict, dict]:
        return dict(self.bound), dict(self.scalars)

    def _restore(self, saved: tuple[dict, dict]) -> None:
        self.bound, self.scalars = saved

    def match(self, step: fx.Node, node: Any) -> bool:
        """Bind `step` and everything it depends on, starting at the model's `node`."""
        if not isinstance(node, fx.Node):
            return self._differ(step, node)
        if step in self.bound and not self.outline:
            return self.bound[step] is node or self._differ(step, node)
        if step.op == "placeholder":
            self.bound[step] = node
            return True
        if node.op != step.op or node.target != step.target or len(node.args) != len(step.args):
            return self._differ(step, node)
        self.bound[step] = node
        for args in self._orders(step):
            saved = self._save()
            if self._tree(args, node.args, step, node) and self._tree(step.kwargs, node.kwargs, step, node):
                return True
            self._restore(saved)
        del self.bound[step]
        return False

    def _orders(self, step: fx.Node) -> list[tuple]:
        swapped = step.target in _COMMUTATIVE and len(step.args) == 2
        return [step.args, step.args[::-1]] if swapped else [step.args]

    def _tree(self, wanted: Any, given: Any, step: fx.Node, node: fx.Node) -> bool:
        if self.outline and not _has_node(wanted):
            return True
        if isinstance(wanted, fx.Node):
            size = wanted.meta.get("val")
            if isinstance(size, (torch.SymInt, int)):
                # A size that the pattern computes: traced at the site, it is written in the model's own symbols.
                return str(size) == str(given.meta.get("val") if isinstance(given, fx.Node) else given) \
                    or self._differ(step, node)
            return self.match(wanted, given)
        if isinstance(wanted, Hole):
            return self._hole(wanted, given) or self._differ(step, node)
        if isinstance(wanted, (list, tuple)):
            same = isinstance(given, (list, tuple)) and len(given) == len(wanted)
            return (same or self._differ(step, node)) and all(
                self._tree(w, g, step, node) for w, g in zip(wanted, given, strict=True))
        if isinstance(wanted, dict):
            return (set(wanted) == set(given) or self._differ(step, node)) and all(
                self._tree(w, given[k], step, node) for k, w in wanted.items())
        return _same(wanted, given) or self._differ(step, node)

    def _hole(self, hole: Hole, given: Any) -> bool:
        if hole.scalar is None:
            return True
        if isinstance(given, fx.Node):
            return False
        if isinstance(given, (list, tuple)):
            given = tuple(given)
        return _same(self.scalars.setdefault(hole.scalar, given), given)

    def _differ(self, step: fx.Node, node: Any) -> bool:
        """Remember the attempt that went furthest."""
        agreed = len(self.bound)
        if agreed > self._agreed or self.furthest < 0:
            self._agreed = agreed
            self.furthest = sum(1 for n in self.bound if n.op == "call_function" and n is not step)
            self._differing = (step, node)
        return False


def _has_node(value: Any) -> bool:
    """Whether a tensor's step stands in an argument tree."""
    if isinstance(value, (list, tuple)):
        return any(_has_node(v) for v in value)
    return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), (torch.Tensor, list, tuple))


def _paths(out: fx.Node) -> list[list[fx.Node]]:
    """From each step or input that `out` depends on, one way down to it. None goes by a size, which is compared by its value:
    the model may have it from another tensor."""
    ways: dict[fx.Node, list[fx.Node]] = {out: [out]}
    queue = [out]
    for node in queue:
        for source in node.all_input_nodes:
            if source not in ways and not isinstance(source.meta.get("val"), (torch.SymInt, int)):
                ways[source] = [source, *ways[node]]
                queue.append(source)
    return list(ways.values())


def _same(a: Any, b: Any) -> bool:
    if isinstance(b, fx.Node):
        return False
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    return a == b and (isinstance(a, (int, float)) == isinstance(b, (int, float)))


def _short(node: Any) -> str:
    if not isinstance(node, fx.Node):
        return repr(node)
    if node.op != "call_function":
        return f"{node.op} {node.name}"
    inner = ", ".join([*(str(a) for a in node.args), *(f"{k}={v}" for k, v in node.kwargs.items())])
    return f"{node.target}({inner})"
