"""Where the published modules begin and end among a region's steps: read from the tracer's stack of modules.

A module's outputs are the steps traced in it that others read; its inputs, the steps that it reads of others. What a
fusion swallowed has no place. Of projections that were joined each has its columns: "linear[96:128]". The comparison of
an artefact with the published model goes by these.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch
from torch import fx

from glmc.graph import published_name
from glmc.passes.emit import Names
from glmc.program import Place

_LAYER = re.compile(r"^(?:.*\.)?(?:layers|blocks?)\.\d+(?:\.|$)")


class Finder:
    """Finds places. `steps`: every step of the graph and the region that it belongs to."""

    def __init__(self, steps: dict[fx.Node, str]) -> None:
        self._paths = {node: _around(node) for node in steps}
        self._regions: dict[str, set[str]] = {}
        for node, region in steps.items():
            for path in self._paths[node]:
                self._regions.setdefault(path, set()).add(region)

    def places(self, nodes: list[fx.Node], leaving: set[fx.Node], weights: set[fx.Node], names: Names) -> dict[str, Place]:
        """Module -> its place among `nodes`, a region's steps. leaving: steps whose value leaves the region.

        Paths are relative to the layer or tower's block where there is one. Modules that reach beyond the region are left out.
        """
        members: dict[str, dict[fx.Node, None]] = {}
        pieces: dict[str, Place] = {}
        for node in nodes:
            for path in self._paths[node]:
                members.setdefault(path, {})[node] = None
            pieces |= _pieces(node, names)
        found: dict[str, Place] = {}
        for path, inside in members.items():
            if len(self._regions[path]) > 1 or path in pieces:
                continue
            inputs = dict.fromkeys(i for n in inside for i in n.all_input_nodes
                                   if i not in inside and i not in weights and i in names and _is_tensor(i))
            outputs = [n for n in inside if _is_tensor(n) and (n in leaving or any(u not in inside for u in n.users))]
            outputs.sort(key=partial(_turn, inside=inside))
            found[path] = Place(tuple(names[i] for i in inputs), tuple(names[o] for o in outputs))
        return {_LAYER.sub("", path): place for path, place in {**found, **pieces}.items() if _LAYER.sub("", path)}


def _turn(node: fx.Node, inside: dict[fx.Node, None]) -> tuple[fx.Node, int]:
    """Outputs come as others read them first: a module may make the sine before the cosine that it gives first."""
    reader = min(user for user in node.users if user not in inside)
    return reader, reader.all_input_nodes.index(node)


def _pieces(node: fx.Node, names: Names) -> dict[str, Place]:
    """The projections that a joined product stands for, each with its columns."""
    found: dict[str, Place] = {}
    start = 0
    for stack, width in _joined(node):
        source: Any = node.args[0]
        found[_paths(stack)[-1]] = Place((names[source],), (f"{names[node]}[{start}:{start + width}]",))
        start += width
    return found


def _joined(node: fx.Node) -> list[tuple[dict[str, Any], int]]:
    """(stack of modules, width) of each projection in a joined product, nothing for any other step."""
    made = node.meta.get("pieces", []) if node.target is torch.ops.aten.linear.default else []
    return made if all(_paths(stack) for stack, _ in made) else []


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _around(node: fx.Node) -> list[str]:
    """The modules that a step was traced in, outermost first; of a joined product those around all its projections."""
    paths = _paths(node.meta.get("nn_module_stack"))
    return paths[:-1] if _joined(node) else paths


def _paths(stack: dict[str, Any] | None) -> list[str]:
    """A stack of modules as paths in the published model, outermost first, without the model itself."""
    paths = dict.fromkeys(path for path, _ in (stack or {}).values() if path.startswith("model."))
    return list(map(published_name, paths))
