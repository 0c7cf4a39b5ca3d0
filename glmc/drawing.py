"""What a drawing of the compiler's work needs, as JSON: the plain steps beside the fused ones, sites, shapes, kernels.

Made during the survey, sealed as `drawing.json`, drawn by `glmc.html.program`, which needs neither torch nor a graph.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from glmc import epilogue, kernels
from glmc.graph import dtype_name, shape_text
from glmc.native.by_line import kernels_by_line
from glmc.native.calls import Refused
from glmc.parts import Part
from glmc.passes.choose import Decision
from glmc.passes.emit import Names
from glmc.passes.outline import Lines, outline
from glmc.passes.plain import plain_line
from glmc.program import Program, Region
from glmc.region import REPLACED
from glmc.target import Target
from glmc.trace import Trace

VERSION = 1
_LAYER = re.compile(r"\b(layers?|blocks?|transformer_blocks)\.(\d+)\b")
_OTHERS = {"native": "need no call of their own", "fx": "are torch's", "aoti": "are Inductor's"}
"""Engine -> what is said of lines that no kernel of ours runs."""


class Before:
    """A part as it is before its graph is rewritten: plain regions, and the sites that were decided on."""

    def __init__(self, part: Part, traced: Trace, decisions: list[Decision]) -> None:
        self.symbols, self.decisions = part.symbols(traced), decisions
        self.pieces: Lines = {}
        self.program = outline(traced, self.symbols, part.names, part.name, part.mode, self.pieces, plain_line)

    def beside(self, program: Program, pieces: Lines, target: Target) -> dict[str, Any]:
        """`regions` and `plain` of drawing.json: each region of the rewritten `program` beside its plain steps.

        pieces: as `outline` filled them. Where several pieces have one region, the first stands for all.
        """
        regions: dict[str, Any] = {}
        plain: dict[str, Any] = {}
        for key, (name, names) in pieces.items():
            if name in regions or key not in self.pieces:
                continue
            before, plain_names = self.pieces[key]
            known = {node.name: line for node, line in plain_names.items()}
            mine, old = _inside(program.regions[name], names), _inside(self.program.regions[before], plain_names)
            plain.setdefault(before, {"text": self.program.regions[before].text(), "shapes": self._shapes(old)})
            found, others = _kernels(program.regions[name], target, program.engine or target.engine)
            regions[name] = {
                "plain": before, "shapes": self._shapes(mine), "kernels": found, "others": others,
                "same": {line: known[node.name] for node, line in names.items()
                         if "site" not in node.meta and node.op == "call_function" and node.name in known},
                "sites": self._sites(mine, old)}
        return {"regions": regions, "plain": plain}

    def _sites(self, steps: dict[fx.Node, str], plain: dict[fx.Node, str]) -> list[dict[str, Any]]:
        """Every site in a piece, the taken ones with the line that stands for them."""
        fused = {node.meta["site"]: line for node, line in steps.items() if "site" in node.meta}
        found = []
        for decision in self.decisions:
            site = decision.site
            lines = [line for node, line in plain.items() if node in site.nodes]
            if lines:
                found.append({"fusion": site.fusion, "place": _LAYER.sub(r"\1.*", site.place), "gain_us": decision.gain_us,
                              "line": fused.get(id(site)), "lines": lines, "reason": _folded(decision.reason)})
        return found

    def _shapes(self, steps: dict[fx.Node, str]) -> dict[str, str]:
        """Line -> dtype and sizes of what it makes; lines that make whole numbers are left out."""
        made = {line: self._shape(node.meta.get("val")) for node, line in steps.items()}
        return {line: shape for line, shape in made.items() if shape}

    def _shape(self, value: Any) -> str:
        if isinstance(value, (tuple, list)):
            return "; ".join(map(self._shape, value))
        if not isinstance(value, torch.Tensor):
            return ""
        return f"{dtype_name(value.dtype)} [{', '.join(map(str, shape_text(value, self.symbols)))}]"


def drawing(befores: Iterable[tuple[Before, Program, Lines]], target: Target) -> dict[str, Any]:
    """drawing.json of a model whose parts these are."""
    made: dict[str, Any] = {"version": VERSION, "target": target.name, "regions": {}, "plain": {}, "sites": []}
    for before, program, pieces in befores:
        beside = before.beside(program, pieces, target)
        made["regions"] |= beside["regions"]
        made["plain"] |= beside["plain"]
        made["sites"] += sites(before.decisions)
    return made


def _inside(region: Region, names: Names) -> dict[fx.Node, str]:
    """The steps of a piece and their lines, without what it reads from outside."""
    lines = region.ops().keys()
    return {node: line for node, line in names.items() if line in lines}


def sites(decisions: Iterable[Decision]) -> list[dict[str, Any]]:
    """Every site, those that differ in the layer's number alone written once: `layers` are "3..91" or "0, 2..4"."""
    groups: dict[tuple[str, str, str | None], list[int]] = {}
    for decision in decisions:
        place = decision.site.place
        key = decision.site.fusion, _LAYER.sub(r"\1.*", place), _folded(decision.reason)
        groups.setdefault(key, []).append(int(found[2]) if (found := _LAYER.search(place)) else -1)
    return [{"fusion": fusion, "place": place, "count": len(layers), "layers": runs(layers), "reason": reason}
            for (fusion, place, reason), layers in groups.items()]


def runs(numbers: Iterable[int]) -> str:
    """[0, 3, 4, 5] -> "0, 3..5"; -1 stands for no layer and is left out."""
    made: list[list[int]] = []
    for number in sorted({n for n in numbers if n >= 0}):
        if made and number == made[-1][-1] + 1:
            made[-1] = [made[-1][0], number]
        else:
            made.append([number])
    return ", ".join("..".join(map(str, run)) for run in made)


def _folded(reason: str | None) -> str | None:
    return reason and re.sub(r"\blayer\.\d+", "layer.*", _LAYER.sub(r"\1.*", reason))


def _kernels(region: Region, target: Target, engine: str) -> tuple[dict[str, str], str]:
    """Line -> the kernel that runs it, and what is said of the other lines."""
    if engine == "native":
        try:
            return {line: " + ".join(names) for line, names in kernels_by_line(region).items()}, _OTHERS[engine]
        except Refused as reason:
            return {}, f"have no kernels on this engine: {reason}"
    single = region.ops()
    joined = epilogue.joined(region).ops() if target.machine in epilogue.MACHINES else single
    done = single | dict.fromkeys(single.keys() - joined.keys(), epilogue.JOINED) | joined
    ops = {line: REPLACED.get(target.machine, {}).get(op, op).partition(".") for line, op in done.items()}
    return {line: f"glmc/kernels/{name}/{target.machine}.py" for line, (space, _, name) in ops.items()
            if space == "glmc" and kernels.has(name, target.machine)}, _OTHERS.get(engine, f"are left to engine {engine}")
