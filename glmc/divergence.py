"""When two results are apart, and which module inside a diverging region is the first that is to blame.

In float32 a result may be 1e-4 of the largest value away from the published one. In bfloat16 both are measured against the
published layer run in float32: ours may be at most twice as wrong as the published one, plus one rounding step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from glmc.program import Place, Region
from glmc.region import Bound
from glmc.streamed import Seen

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Apart:
    """Worst absolute error, the same relative to the largest exact value, and the most that the latter may be."""

    absolute: float
    relative: float
    limit: float

    @property
    def diverges(self) -> bool:
        return not self.relative <= self.limit


def apart(ours: torch.Tensor, theirs: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> Apart:
    """Compare a result, on any device, with the published one. dtype: the artefact's; exact: `theirs` itself where that is
    float32."""
    sure = exact.cpu().double()
    scale = float(sure.abs().max()) if sure.numel() else 0.0
    scale = scale if 0 < scale < math.inf else 1.0

    def worst(found: torch.Tensor) -> float:
        wide = found.cpu().double().reshape(sure.shape)
        errors = torch.where(wide == sure, 0.0, (wide - sure).abs())
        most = float(errors.max()) if errors.numel() else 0.0
        return math.inf if math.isnan(most) else most

    error = worst(ours)
    limit = TOLERANCE if dtype == torch.float32 else 2 * worst(theirs) / scale + torch.finfo(dtype).eps
    return Apart(error, error / scale, limit)


def worse(first: Apart | None, second: Apart) -> Apart:
    """The one that is further over its limit, or nearer to it."""
    if first is None or second.relative / second.limit >= first.relative / first.limit:
        return second
    return first


@dataclass
class Row:
    """One step, or one module of a step. `form`: the form in which it was worst; `ties`: tokens whose experts were as good
    as others, and which were compared with the same experts in both."""

    module: str
    form: str = ""
    worst: Apart | None = None
    ties: int = 0

    def add(self, form: str, found: Apart) -> None:
        self.worst = worse(self.worst, found)
        self.form = form if self.worst is found else self.form

    @property
    def diverges(self) -> bool:
        return self.worst is not None and self.worst.diverges

    def unjudged(self) -> None:
        """Keep the errors and take the limit away."""
        if self.worst is not None:
            self.worst = dataclasses.replace(self.worst, limit=math.inf)

    def to_json(self) -> dict[str, Any]:
        found = self.worst or Apart(0.0, 0.0, 0.0)
        finite = {k: v if v < float("inf") else None for k, v in vars(found).items()}
        verdict = "diverges" if found.diverges else "agrees" if finite["limit"] is not None else "not judged"
        return {"module": self.module, "form": self.form, "absolute_error": finite["absolute"],
                "relative_error": finite["relative"], "limit": finite["limit"], "ties": self.ties, "verdict": verdict}


Pairs = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def paired(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> Pairs | None:
    """Ours beside the published and the exact ones, by kind and size, equals in order; None where that is not clear.

    What only the published module has (an output that nobody reads) is left out. A choice (indices beside weights of the
    same shape) is compared in the order of its indices; a published table that has every lane twice, by half of them.
    """
    mine = _sorted_choices(ours)
    kinds = {_kind(t) for t in mine}
    left, right = ([_fitting(t, kinds) for t in _sorted_choices(side)] for side in (theirs, exact))
    pairs: Pairs = []
    for kind in dict.fromkeys(map(_kind, mine)):
        group = [[t for t in side if _kind(t) == kind] for side in (mine, left, right)]
        if len({len(g) for g in group}) != 1:
            return None
        pairs += zip(*group, strict=True)
    return pairs or None


def _kind(tensor: torch.Tensor) -> tuple[bool, int, int]:
    return tensor.is_floating_point(), tensor.numel(), tensor.shape[-1] if tensor.dim() else 0


def _fitting(tensor: torch.Tensor, kinds: set[tuple[bool, int, int]]) -> torch.Tensor:
    """Half of the lanes where the others repeat them, in halves or in pairs, and ours has only as many."""
    if _kind(tensor) in kinds or tensor.dim() == 0 or tensor.shape[-1] % 2:
        return tensor
    for first, second in (tensor.chunk(2, -1), (tensor[..., ::2], tensor[..., 1::2])):
        if _kind(first) in kinds and torch.equal(first, second):
            return first
    return tensor


def _is_choice(tensor: torch.Tensor, others: Sequence[torch.Tensor]) -> bool:
    return not tensor.is_floating_point() and any(o.is_floating_point() and o.shape == tensor.shape for o in others)


def _sorted_choices(found: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Floating tensors, and choices in the order of their indices; other whole numbers are left out."""
    choices = [t for t in found if _is_choice(t, found)]
    kept = [t for t in found if t.is_floating_point() or any(t is c for c in choices)]
    if len(choices) != 1:
        return [t for t in kept if t.is_floating_point()]
    order = choices[0].argsort(dim=-1)
    return [t.gather(-1, order) if t.shape == order.shape else t for t in kept]


def routers(seen: dict[str, Seen]) -> dict[str, torch.Tensor]:
    """Modules that choose -> the indices that they chose."""
    return {path: t for path, s in seen.items() for t in s.outputs if _is_choice(t, s.outputs)}


def choices(seen: dict[str, Seen]) -> torch.Tensor | None:
    """The slots that a layer's indexer chose, int32 [B, S, T]; None without one."""
    return next((t for s in seen.values() for t in s.outputs if t.dtype == torch.int32 and len(s.outputs) == 1), None)


def chosen_apart(ours: torch.Tensor, theirs: torch.Tensor, exact: torch.Tensor, first: int) -> tuple[Apart, torch.Tensor]:
    """How far two choices of slots are apart, and the tokens [B, S] that all three choose alike.

    first: position of the first token. Judged are tokens that see more slots than they may choose. The share of slots that
    differ from the exact choice may be twice the published one's, and a hundredth more.
    """
    many = torch.arange(first, first + ours.shape[1]) >= ours.shape[2]
    same = torch.ones(ours.shape[:2], dtype=torch.bool)
    shares = []
    for side in (ours, theirs):
        if side.shape != exact.shape or not bool(many.any()):
            shares.append(0.0)  # fewer slots are there than may be chosen: all of them are
            continue
        found = (side.unsqueeze(-1) == exact.unsqueeze(-2)).any(-1)
        same &= found.all(-1) | ~many
        shares.append(1 - float(found[:, many].double().mean()))
    return Apart(shares[0], shares[0], 2 * shares[1] + 0.01), same


def values(region: Region, inputs: Sequence[torch.Tensor], places: dict[str, Place], kernels: str = "cpu",
           device: str = "cpu") -> dict[str, torch.Tensor]:
    """Run a region's text line by line; the values that places name, in the order they are made. Inputs stay as they are.

    kernels: the machine whose kernels it calls; device: where the inputs are.
    """
    wanted: dict[str, set[str]] = {}
    for place in places.values():
        for name in (*place.inputs, *place.outputs):
            wanted.setdefault(name.split("[")[0], set()).add(name)
    kept: dict[str, torch.Tensor] = {}

    def keep(name: str, value: Any) -> None:
        for asked in sorted(wanted.get(name, ())) if isinstance(value, torch.Tensor) else ():
            start, _, stop = asked[len(name) + 1:-1].partition(":")
            kept[asked] = value[..., int(start):int(stop)].clone() if stop else value.clone()

    copies = [t.clone() if role == "cache" else t for t, (_, role, _) in zip(inputs, region.inputs, strict=True)]
    for value, (name, _, _) in zip(copies, region.inputs, strict=True):
        keep(name, value)
    with torch.no_grad():
        for name, value in Bound(region, kernels, device, by_line=True).lines(*copies):
            keep(name, value)
    return kept


@dataclass(frozen=True)
class Blame:
    """The first module that diverges, relative to the region's own ("" for that itself), and how many were compared."""

    module: str | None
    compared: int
    skipped: int


def first(places: dict[str, Place], made: dict[str, torch.Tensor], theirs: dict[str, Seen], exact: dict[str, Seen],
          dtype: torch.dtype) -> Blame:
    """Compare the modules in the order in which they end, inner ones first. A module whose input was wrong already is not
    to blame: then it is the one around it, between the last module that agreed and this one."""
    order = {name: number for number, name in enumerate(made)}
    compared = skipped = 0
    ends = {m: max((order.get(o, -1) for o in p.outputs), default=-1) for m, p in places.items()}
    for module in sorted(places, key=lambda m: (ends[m], -m.count("."))):
        if ends[module] < 0 or module not in theirs:
            skipped += 1
            continue
        found = _worst(places[module].outputs, made, theirs[module].outputs, exact[module].outputs, dtype)
        if found is None:
            skipped += 1
            continue
        compared += 1
        if found.diverges:
            given = _worst(places[module].inputs, made, theirs[module].inputs, exact[module].inputs, dtype)
            guilty = module.rpartition(".")[0] if given is not None and given.diverges else module
            return Blame(guilty, compared, skipped)
    return Blame(None, compared, skipped)


def _worst(names: Sequence[str], made: dict[str, torch.Tensor], theirs: Sequence[torch.Tensor],
           exact: Sequence[torch.Tensor], dtype: torch.dtype) -> Apart | None:
    """The worst of the values that can be paired; None where they cannot."""
    pairs = paired([made[n] for n in names if n in made], theirs, exact)
    found: Apart | None = None
    for ours, published, sure in pairs or ():
        found = worse(found, apart(ours, published, sure, dtype))
    return found
