"""A program's steps folded: what repeats is told once, with its weights by pattern. Works on program.json. No torch."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glmc.program import MOVES, Region

_LAYER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_LONGEST = 16


@dataclass(frozen=True)
class Bound:
    """A name that a call binds, "*" for the layer's number. role: value, weight or cache; form: how a weight is kept."""

    role: str
    local: str
    name: str
    spec: str
    elements: int
    form: str = ""


@dataclass(frozen=True)
class Call:
    """A region or a move between regions, called `count` times. layers: the numbers that stand for "*", in order."""

    region: str
    count: int
    layers: tuple[int, ...]
    bound: tuple[Bound, ...]
    told: str = ""

    @property
    def elements(self) -> int:
        """Elements of the weights of all calls."""
        return self.count * sum(one.elements for one in self.bound if one.role == "weight")


def folded(part: Mapping[str, Any], regions: Mapping[str, Region], kept: Mapping[str, Any]) -> list[list[Call]]:
    """Groups of calls, each group so often one after another as its calls' `count` says. kept: weight -> its form."""
    steps = part["steps"]
    makers = {value: number for number, step in enumerate(steps) for value in step["outputs"]}
    made: list[list[Call]] = []
    at = 0
    while at < len(steps):
        period, count = _repeats([step["region"] for step in steps[at:]])
        made.append([_call(range(at + place, at + period * count, period), steps, makers, regions, kept)
                     for place in range(period)])
        at += period * count
    return made


def _repeats(names: Sequence[str]) -> tuple[int, int]:
    """The period that covers most of the beginning, and how often; the shortest of those that cover as much."""
    best = (1, 1)
    for period in range(1, min(_LONGEST, len(names) // 2) + 1):
        count = 1
        while names[period * count:period * (count + 1)] == names[:period]:
            count += 1
        if count > 1 and period * count > (best[0] * best[1] if best[1] > 1 else 1):
            best = period, count
    return best


def _call(numbers: range, steps: Sequence[Mapping[str, Any]], makers: Mapping[str, int], regions: Mapping[str, Region],
          kept: Mapping[str, Any]) -> Call:
    first = steps[numbers[0]]
    name = first["region"]
    if name in MOVES:
        told = ", ".join(f"{key} {value}" for key, value in first.get("fixed", {}).items() if key != "layer")
        return Call(name, len(numbers), (), (), told)
    layers: dict[int, None] = {}
    found: list[Bound] = []
    for place, (local, role, spec) in enumerate(regions[name].inputs):
        names = [steps[number]["inputs"][place] for number in numbers]
        if role == "value":
            said = dict.fromkeys(n.removeprefix("input:") if n.startswith("input:") else steps[makers[n]]["region"]
                                 for n in names)
            found.append(Bound(role, local, ", ".join(said), spec.text(), 0))
            continue
        whole = [n.partition(":")[2] for n in names]
        layers |= dict.fromkeys(int(number[0]) for n in whole if (number := _LAYER.search(n)))
        patterns = Counter(_LAYER.sub("*", n, count=1) for n in whole) if len(numbers) > 1 else Counter(whole)
        forms = {kept[n]["form"] for n in whole if n in kept}
        numeric = math.prod(size for size in spec.shape if isinstance(size, int))
        found.append(Bound(role, local, ", ".join(patterns), spec.text(), numeric if role == "weight" else 0,
                           ", ".join(sorted(forms))))
    return Call(name, len(numbers), tuple(layers), tuple(found), "last rows" if first["rows"] == "last" else "")


def span(numbers: Sequence[int]) -> str:
    """(0, 3, 4, 5) -> "0, 3..5"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ", ".join("..".join(map(str, run)) for run in runs)
