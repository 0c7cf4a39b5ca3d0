"""What a program would take on ranks that are not here: the time of each stage, and what bounds it.

A region costs what its products and attention compute, counted by running its text on tensors without memory, or what it reads
and writes, whichever takes a rank longer; a move between regions costs what a ring of the ranks costs over the link.
Nothing else is modelled: no overlap, no contention between ranks of one machine, no work of the host but `Rank.call`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch.fx.experimental import _config as config
from torch.utils.flop_counter import FlopCounterMode

from glmc.errors import UsageError
from glmc.program import Program, Region, Spec, Step
from glmc.region import Bound
from glmc.target import Link


@dataclass(frozen=True)
class Rank:
    """What one rank does in a second, operations and bytes of memory; `call`: the seconds that starting a region takes."""

    flops: float
    bandwidth: float
    call: float = 0.0


@dataclass(frozen=True)
class Cost:
    """Of a region or a move, for one rank: operations, bytes of its own memory, and bytes and times over the link."""

    flops: float = 0
    bytes: float = 0
    sent: float = 0
    waits: float = 0

    def seconds(self, rank: Rank, link: Link) -> dict[str, float]:
        """What each bound alone would take."""
        return {"compute": self.flops / rank.flops, "memory": self.bytes / rank.bandwidth,
                "link": self.sent / link.bandwidth + self.waits * link.latency}


@dataclass(frozen=True)
class Row:
    """All calls of one region, or all moves of one kind, of a stage. bound: compute, memory or link."""

    name: str
    calls: int
    seconds: float
    bound: str


@dataclass(frozen=True)
class Prediction:
    """Of one run of a stage on `ranks` ranks; `rows` by time, the longest first."""

    ranks: int
    rows: list[Row] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return sum(row.seconds for row in self.rows)

    @property
    def bound(self) -> str:
        """Where most of the time goes."""
        shares: dict[str, float] = {}
        for row in self.rows:
            shares[row.bound] = shares.get(row.bound, 0.0) + row.seconds
        return max(shares, key=lambda name: shares[name])

    def to_json(self) -> dict[str, object]:
        return {"ranks": self.ranks, "seconds": self.seconds, "bound": self.bound, "rows": [row.__dict__ for row in self.rows]}


def predict(program: Program, letters: Mapping[str, int], ranks: int, rank: Rank, link: Link) -> Prediction:
    """One run of `program`, whose sizes are those of one of the ranks, where letters have these values there.

    Rows of the head are one, as in generating. Raises UsageError for a letter without a value.
    """
    found: dict[str, tuple[int, float, str]] = {}
    specs: dict[str, Spec] = {}
    costs: dict[tuple[str, int], Cost] = {}
    for step in program.steps:
        if step.moves:
            cost = _move(step, specs, letters, ranks)
            specs.update((out, specs[given]) for given, out in zip(step.inputs, step.outputs, strict=True))
        else:
            region = program.regions[step.region]
            specs.update(zip(step.outputs, region.outputs, strict=True))
            here = {**letters, "S": 1} if step.rows == "last" else dict(letters)
            key = step.region, here.get("S", 0)
            cost = costs[key] if key in costs else costs.setdefault(key, cost_of(region, here))
        parts = cost.seconds(rank, link)
        bound = max(parts, key=lambda name: parts[name])
        calls, seconds, _ = found.get(step.region, (0, 0.0, bound))
        found[step.region] = calls + 1, seconds + parts[bound] + (0.0 if step.moves else rank.call), bound
    rows = [Row(name, *values) for name, values in found.items()]
    return Prediction(ranks, sorted(rows, key=lambda row: -row.seconds))


def cost_of(region: Region, letters: Mapping[str, int]) -> Cost:
    """What one call computes, reads and writes; of experts as many are read as the tokens can visit. Raises UsageError."""
    unknown = {name for _, _, spec in region.inputs for size in spec.shape if isinstance(size, str)
               for name in _names(size)} - letters.keys()
    if unknown:
        raise UsageError("a size of the stage has no value", field=min(unknown), expected="a value for each letter",
                         found=", ".join(sorted(letters)))
    made = {name: torch.empty(spec.at(letters), dtype=getattr(torch, spec.dtype), device="meta")
            for name, _, spec in region.inputs}
    sizes = config.patch(meta_nonzero_assume_all_nonzero=True)  # type: ignore[attr-defined]  # a mask finds everything
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sizes:
        outputs = Bound(region, "cpu", "meta")(*made.values())
    tensors = [*made.values(), *outputs]
    total = float(sum(_bytes(t) for t in tensors))
    for name, role, _ in region.inputs:
        tensor = made[name]
        if role != "weight" or not tensor.dim():
            continue
        tokens = letters.get("B", 1) * letters.get("S", 1)
        if _looked_up(region, name):
            total -= _bytes(tensor) * max(0.0, 1 - tokens / tensor.shape[0])
        elif (visited := _visited(region, name)) is not None:
            total -= _bytes(tensor) * max(0.0, 1 - visited * tokens / tensor.shape[0])
    return Cost(flops=counter.get_total_flops(), bytes=total)


def _move(step: Step, specs: Mapping[str, Spec], letters: Mapping[str, int], ranks: int) -> Cost:
    """A ring's cost: each rank sends its part on until all have all; a sum goes round twice."""
    if ranks == 1 or step.region == "past":
        return Cost()
    size = 0
    for name in step.inputs:
        sizes = specs[name].at(letters)
        if "after" in step.fixed:
            sizes[int(step.fixed["dim"])] -= letters[str(step.fixed["after"])]
        size += math.prod(sizes) * torch.empty((), dtype=getattr(torch, specs[name].dtype)).element_size()
    around = ranks - 1
    if step.region == "all_reduce":
        return Cost(sent=2 * around / ranks * size, waits=2 * around * len(step.inputs))
    return Cost(sent=around * size, waits=around * len(step.inputs))


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _names(size: str) -> set[str]:
    return {word for word in size.replace("*", " ").replace("+", " ").split() if word.isalpha()}


def _looked_up(region: Region, name: str) -> bool:
    return any(f"embedding.default({name}, " in line for line in region.body)


def _visited(region: Region, name: str) -> int | None:
    """Experts that a token visits, where `name` holds a matrix of each; None for another weight."""
    if not any("moe_experts(" in line or "grouped_mm(" in line for line in region.body if name in line):
        return None
    tops = [line for line in region.body if "moe_route(" in line]
    found = [part.split("=")[1] for line in tops for part in line.rstrip(")").split(", ") if part.startswith("top=")]
    return int(found[0]) if found else None
