"""Numeric proof that ranks compute what one does: each distinct region's pieces, all ranks in step, against the uncut region.

Weights, inputs and caches are random; every rank has its share of them, sums and gathers are made between the pieces, and all
runs in float32 with the kernels of the CPU. The worst error may be 1e-4 of the largest value. Experts are chosen by the
correction alone, so that no near tie decides; of many experts few are replayed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from glmc.errors import NumericError
from glmc.passes.prove_native import input_for, widened
from glmc.placement import Placement
from glmc.program import Program, Region, Step
from glmc.region import Bound

LIMIT = 1e-4
_MOST = 1 << 28
"""The most elements of a region's weights."""
_SHAPES = ({"B": 1, "S": 7, "L": 70, "M": 5}, {"B": 3, "S": 1, "L": 33, "M": 5})
_ROUTE = re.compile(r"glmc\.moe_route\((\w+), (\w+),.*groups=(\d+).*top=(\d+)")
_EXPERTS = re.compile(r"glmc\.moe_experts\(\w+, \w+, \w+, (\w+), (\w+)\)")
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class PlacementProof:
    """A region over `ranks` ranks: its worst error over all shapes, relative to the largest exact value."""

    region: str
    pieces: int
    ranks: int
    error: float
    limit: float
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


@torch.no_grad()
def prove_placement(program: Program, placement: Placement, ranks: int) -> list[PlacementProof]:
    """Prove each distinct region that is cut. Raises NumericError."""
    found: dict[tuple[str, ...], PlacementProof] = {}
    placed, at = iter(placement.program.steps), placement.program.at(ranks)
    for step in program.steps:
        group: list[Step] = []
        while not set(step.outputs) <= {name for one in group for name in one.outputs}:
            group.append(next(placed))
        key = tuple(one.region for one in group)
        if key not in found and key != (step.region,):
            found[key] = _Replay(program.regions[step.region], step, group, at, placement, ranks).proof()
    return list(found.values())


class _Replay:
    """One region: what it reads by the program's names, uncut and of each rank."""

    def __init__(self, region: Region, step: Step, group: list[Step], at: Program, placement: Placement, ranks: int) -> None:
        self.region, self.step, self.group, self.at, self.placement = region, step, group, at, placement
        self.ranks, self.draw = ranks, torch.Generator().manual_seed(11)

    def proof(self) -> PlacementProof:
        pieces = sum(not one.moves for one in self.group)
        few, note = _fewer(self.region)
        shapes = {name: [few.get(name, int(spec.shape[0])), *map(int, spec.shape[1:])]
                  for name, role, spec in self.region.inputs if role == "weight"}
        if sum(map(math.prod, shapes.values())) > _MOST:
            return PlacementProof(self.region.name, pieces, self.ranks, 0.0, LIMIT,
                                  f"not replayed: more than {_MOST} elements of weights")
        weights = {name: self._weight(name, shape) for name, shape in shapes.items()}
        worst = max(self._error(weights, shape) for shape in _SHAPES)
        if not worst <= LIMIT:
            raise NumericError("the ranks' pieces of a region are not together what the region is", field=self.region.name,
                               expected=f"at most {LIMIT:.3g} on {self.ranks} ranks", found=f"{worst:.3g}")
        return PlacementProof(self.region.name, pieces, self.ranks, worst, LIMIT, note)

    def _error(self, weights: Tensors, sizes: Mapping[str, int]) -> float:
        top = max([int(n) for n in re.findall(r"top=(\d+)", "".join(self.region.body))], default=0)
        top = max([top, *(int(spec.shape[-1]) for _, role, spec in self.region.inputs if spec.dtype == "int32")])
        sizes = {**sizes, "L": max(sizes["L"], top + 40)}
        text = widened(self.region)
        local = {name: input_for(name, spec, dict(sizes), self.draw) for name, role, spec in text.inputs if role != "weight"}
        local |= weights
        given = {name: local[own] for name, (own, _, _) in zip(self.step.inputs, text.inputs, strict=True)}
        mine = [self._share(given, rank) for rank in range(self.ranks)]
        whole = _apart(given)
        whole |= _run(text, self.step, whole)
        for one in self.group:
            if one.moves:
                _move(one, mine)
            else:
                piece = widened(self.at.regions[one.region])
                for values in mine:
                    values |= _run(piece, one, values)
        errors = [0.0]
        for name in (*self.step.outputs, *(n for n in self.step.inputs if n.startswith("cache:"))):
            if not whole[name].is_floating_point():
                continue
            held = [values[name] for values in mine]
            if held[0].shape != whole[name].shape:  # heads of a cache
                held = [torch.cat(held, -2)]
            scale = max(float(whole[name].abs().max()), 1e-6)
            for made in held:
                gap = (made - whole[name]).abs()
                errors.append(math.inf if gap.isnan().any() else float(gap.max()) / scale)
        return max(errors)

    def _share(self, given: Tensors, rank: int) -> Tensors:
        """What a rank has of all that the region reads."""
        own: Tensors = {}
        specs = {name: spec for one in self.group if not one.moves
                 for name, (_, _, spec) in zip(one.inputs, self.at.regions[one.region].inputs, strict=True)}
        for name, tensor in given.items():
            cut = self.placement.cuts.get(name.removeprefix("weight:"))
            if cut is not None:
                tensor = cut.share(tensor, rank, self.ranks)
            elif name.startswith("cache:") and name in specs:
                heads = int(specs[name].shape[-2])
                tensor = tensor if heads == tensor.shape[-2] else tensor.narrow(-2, rank * heads, heads)
            own[name] = tensor
        return _apart(own)

    def _weight(self, name: str, shape: list[int]) -> torch.Tensor:
        drawn = torch.randn(shape, generator=self.draw)
        if any(m[2] == name for line in self.region.body if (m := _ROUTE.search(line))):
            return 100.0 * torch.randperm(shape[0], generator=self.draw).float()
        if "norm" in name:
            return 1 + 0.3 * drawn
        return 0.3 * drawn if len(shape) == 1 else drawn * shape[-1] ** -0.5


def _apart(values: Tensors) -> Tensors:
    """The same with caches of its own, which runs write."""
    return {name: tensor.clone() if name.startswith("cache:") else tensor for name, tensor in values.items()}


def _run(region: Region, step: Step, values: Tensors) -> Tensors:
    return dict(zip(step.outputs, Bound(region, "cpu")(*(values[name] for name in step.inputs)), strict=True))


def _move(step: Step, ranks: list[Tensors]) -> None:
    (before,), (after,) = step.inputs, step.outputs
    held = [values[before] for values in ranks]
    made = torch.stack(held).sum(0) if step.region == "all_reduce" else torch.cat(held, int(step.fixed["dim"]))
    for values in ranks:
        values[after] = made.clone()


def _fewer(region: Region) -> tuple[dict[str, int], str | None]:
    """Weights of experts -> of how many there are enough, and what to say of it."""
    text = "\n".join(region.body)
    route, experts = _ROUTE.search(text), _EXPERTS.search(text)
    specs = {name: spec for name, _, spec in region.inputs}
    if route is None or experts is None or sum(math.prod(map(int, s.shape)) for n, s in specs.items() if n in experts.groups()
                                               ) <= _MOST // 16:
        return {}, None
    router = re.search(rf"{route[1]} = aten\.linear\.default\(\w+, (\w+)", text)
    names = [route[2], *experts.groups(), *([router[1]] if router else [])]
    count, groups, top = int(specs[route[2]].shape[0]), int(route[3]), int(route[4])
    few = groups * max(2, -(-2 * top // groups))
    widened_router = any(name not in specs for name in names)
    if few >= count or router is None or widened_router:
        return {}, None
    return dict.fromkeys(names, few), f"with {few} experts of {count}"
