"""Cut a graph at the layers' boundaries and keep one region for each distinct form.

Regions take tensors only: a size that comes from outside is read again from one of the region's own inputs. Names inside
are canonical, so layers that do the same have the same text, and the text's digest is the region's name.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from glmc.errors import InternalError
from glmc.graph import EXCHANGE, dtype_name, published_name, region_of, shape_text
from glmc.passes.emit import Names, line
from glmc.passes.places import Finder
from glmc.program import MODES, Places, Program, Region, Spec, Step
from glmc.trace import Trace

_PREFIX = re.compile(r"^(?:.*?(?:layers|blocks?|transformer_blocks)\.\d+\."
                     r"|(?:model\.|language_model\.|visual\.|transformer\.|text_encoder\.|encoder\.|vae\.)*)")


Lines = dict[str, tuple[str, Names]]
"""A piece of the graph, such as "layer.7" -> its region, and the names of its steps there."""


def outline(trace: Trace, symbols: dict[str, str], inputs: tuple[str, ...], part: str = "text", mode: str = MODES[0],
            lines: Lines | None = None, write: Callable[[fx.Node, Names], str] = line) -> Program:
    """The program of one traced part.

    symbols: the tracer's symbol names -> letters. inputs: names of the part's inputs in order, "keys.7" for a layer's state.
    mode: how it runs over ranks. lines: is filled with what became of each piece. write: how a step is written as a line.
    """
    outliner = _Outliner(trace, symbols, inputs, "" if part == "text" else f"{part}_", write)
    made = outliner.program(mode)
    if lines is not None:
        lines |= outliner.lines
    return made


class _Outliner:
    def __init__(self, trace: Trace, symbols: dict[str, str], inputs: tuple[str, ...], prefix: str,
                 write: Callable[[fx.Node, Names], str]) -> None:
        self.trace, self.graph, self.symbols = trace, trace.graph, symbols
        self.inputs, self.prefix, self.write = inputs, prefix, write
        self.lines: Lines = {}
        self.result: fx.Node
        self.regions: dict[str, Region] = {}
        self.values: dict[Any, str] = {}
        owner = region_of(trace.graph)
        self.pieces: dict[str, list[fx.Node]] = {}
        for node, key in owner.items():
            self.pieces.setdefault(key, []).append(node)
        self.owner = owner
        self.finder, self.places = Finder(owner), Places()
        returned: Any = trace.graph.output_node().args[0]
        (self.result,) = returned if isinstance(returned, (list, tuple)) else (returned,)

    def program(self, mode: str) -> Program:
        steps: list[Step] = []
        for key in sorted(self.pieces, key=_order):
            exchange = next((n for n in self.pieces[key] if str(n.target) == EXCHANGE), None)
            steps += [self._step(key)] if exchange is None else self._moves(exchange)
        program = Program(self.regions, tuple(steps), self.values[self.result], self.places, mode)
        program.check()
        return program

    def _outside_name(self, node: fx.Node) -> tuple[str, str]:
        """(role, program-wide name) of a node that a region reads from outside."""
        if node.name in self.trace.parameters:
            return "weight", "weight:" + published_name(self.trace.parameters[node.name])
        if node.op == "placeholder":
            name = self.inputs[self.trace.inputs.index(node.name)]
            return ("cache", f"cache:{name}") if "." in name else ("value", f"input:{name}")
        return "value", self.values[node]

    def _moves(self, exchange: fx.Node) -> list[Step]:
        """The steps that an exchange of keys and values stands for: all ranks' are joined, then those of images before."""
        args: Any = exchange.args
        given, (dim, after, layer) = args[:2], args[3:]
        steps, joined = [], []
        for node in given:
            joined.append(self._named((exchange, node)))
            steps.append(Step("all_gather", (self.values[node],), (joined[-1],), fixed={"dim": dim, "after": after}))
        made = {user.args[1]: user for user in exchange.users}
        return [*steps, Step("past", tuple(joined), (self._named(made[0]), self._named(made[1])), fixed={"layer": layer})]

    def _named(self, value: Any) -> str:
        self.values[value] = f"value:{len(self.values)}"
        return self.values[value]

    def _step(self, key: str) -> Step:
        nodes = [n for n in self.pieces[key] if not _is_size(n)]
        inside = set(nodes)
        outside = list(dict.fromkeys(
            i for n in nodes for i in n.all_input_nodes if i not in inside and not _is_size(i)))
        outside += self._unsized(nodes, inside, outside)
        outputs = [n for n in nodes if n is self.result or any(self._leaves(u, key) for u in n.users)]
        kind = self.prefix + key.split(".")[0]
        names, inputs, globals_ = Names(), [], []
        for node in outside:
            role, name = self._outside_name(node)
            local = {"weight": lambda n=name: _PREFIX.sub("", n.split(":")[1]).replace(".", "_"),
                     "cache": lambda n=name: n.split(":")[1].split(".")[0],
                     "value": lambda n=name: n.split(":")[1] if n.startswith("input:") else "x"}[role]()
            inputs.append((names.give(node, local), role, self._spec(node)))
            globals_.append(name)
        body: list[str] = []
        for node in nodes:
            for size in (i for i in node.all_input_nodes if _is_size(i)):
                self._size(size, outside, names, body)
            body.append(self.write(node, names))
        returned = ', '.join(names[o] for o in outputs) + (',' if len(outputs) == 1 else '')
        body.append(f'return ({returned})')
        region = Region(kind, tuple(inputs), tuple(self._spec(o) for o in outputs), tuple(body))
        region = Region(f"{kind}_{Region.digest(region.text())}", region.inputs, region.outputs, region.body)
        if region.name not in self.regions:
            weights = {n for n in outside if n.name in self.trace.parameters}
            self.places[region.name] = self.finder.places(nodes, set(outputs), weights, names)
        self.regions[region.name] = region
        self.lines[key] = region.name, names
        rows = "last" if kind == "head" else "all"
        return Step(region.name, tuple(globals_), tuple(map(self._named, outputs)), rows)

    def _unsized(self, nodes: list[fx.Node], inside: set[fx.Node], outside: list[fx.Node]) -> list[fx.Node]:
        """Sources of sizes that none of the region's inputs has: they come in for their size alone."""
        have = {str(s) for n in outside for s in n.meta["val"].shape}
        queue = [i for n in nodes for i in n.all_input_nodes if _is_size(i)]
        wanted: dict[fx.Node, None] = {}
        for size in queue:
            if size.target != torch.ops.aten.sym_size.int:
                queue.extend(i for i in size.all_input_nodes if i not in queue)
            elif str(size.meta["val"]) not in have and size.args[0] not in inside:
                source: Any = size.args[0]
                wanted[source] = None
                have |= {str(s) for s in source.meta["val"].shape}
        return list(wanted)

    def _leaves(self, user: fx.Node, key: str) -> bool:
        return user.op == "call_function" and self.owner[user] != key

    def _spec(self, node: fx.Node) -> Spec:
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor):
            raise InternalError("only tensors may cross a region's edge", field=node.name, found=type(value).__name__)
        return Spec(dtype_name(value.dtype), tuple(shape_text(value, self.symbols)))

    def _size(self, node: fx.Node, outside: list[fx.Node], names: Names, body: list[str]) -> None:
        """Write the steps that make an integer inside the region: read from an input, or computed from such."""
        if node in names:
            return
        if node.target == torch.ops.aten.sym_size.int:
            wanted = str(node.meta["val"])
            for source in outside:
                for dim, size in enumerate(source.meta["val"].shape):
                    if str(size) == wanted:
                        letters = shape_text(source.meta["val"], self.symbols)[dim]
                        name = names.give(node, "size_" + re.sub(r"\W+", "_", str(letters)))
                        body.append(f"{name} = aten.sym_size.int({names[source]}, {dim})")
                        return
            if node.args[0] not in names:
                raise InternalError("no input of the region has this size", field=node.name, found=wanted)
            body.append(self.write(node, names))
            return
        for inner in node.all_input_nodes:
            self._size(inner, outside, names, body)
        body.append(self.write(node, names))


def _order(key: str) -> tuple[int, ...]:
    kind, *numbers = key.split(".")
    return ("embed", "layer", "head").index(kind), *map(int, numbers)


def _is_size(node: fx.Node) -> bool:
    """Whether the node is an integer computed from shapes."""
    return node.op == "call_function" and (
        node.target == torch.ops.aten.sym_size.int
        or (getattr(node.target, "__module__", "") == operator.add.__module__
            and not isinstance(_val(node), (torch.Tensor, tuple, list)) and node.target is not operator.getitem))


def _val(node: fx.Node) -> Any:
    return node.meta.get("val")
