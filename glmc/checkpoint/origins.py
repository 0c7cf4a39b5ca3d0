"""Where each tensor of the checkpoint went: parameter by parameter, equal layers and runs of experts written once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from glmc.checkpoint.dequantise import Dequantise
from glmc.checkpoint.recipe import Recipe, Tensors

_LAYER = re.compile(r"(?<=layers\.)\d+(?=\.)")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def origins(recipes: Mapping[str, Recipe], tensors: Tensors) -> dict[str, Any]:
    """What sources.json holds. `{}` stands for the number of a parameter's layer, `[0-7]` for a run of other numbers.

    parameters: which, in which layers, made from which tensors. forms: how many weights are read in each form or dtype.
    unread: tensors that nothing reads, and how many they are.
    """
    groups: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    read: set[str] = set()
    leaves: dict[str, str] = {}
    for parameter, recipe in recipes.items():
        names = recipe.names()
        read.update(names)
        leaves |= {leaf.names()[0]: leaf.source.form if isinstance(leaf, Dequantise) else leaf.dtype(tensors)
                   for leaf in recipe.leaves()}
        found = _LAYER.search(parameter)
        number = found[0] if found else None
        own = tuple(_folded(_layered(name, number) for name in names))
        groups.setdefault((_layered(parameter, number), own), []).append(int(number or -1))
    made = [{"parameter": parameter, **({"layers": _runs(numbers)} if numbers != [-1] else {}), "from": list(names)}
            for (parameter, names), numbers in groups.items()]
    unread = [name for name in tensors if name not in read]
    return {"parameters": made, "forms": dict(sorted(Counter(leaves.values()).items())), "read": len(read),
            "unread": {"count": len(unread), "tensors": _folded(unread)}}


def _layered(name: str, number: str | None) -> str:
    return name if number is None else _LAYER.sub(lambda m: "{}" if m[0] == number else m[0], name, count=1)


def _folded(names: Iterable[str]) -> list[str]:
    """Names that differ only in numbers as one, each number as the runs of all that stand in its place."""
    found: dict[str, list[set[int]]] = {}
    for name in names:
        numbers = [int(n) for n in _NUMBER.findall(name)]
        places = found.setdefault(_NUMBER.sub("\0", name), [set() for _ in numbers])
        for place, number in zip(places, numbers, strict=True):
            place.add(number)
    made = []
    for template, places in found.items():
        first, *rest = template.split("\0")
        runs = [_runs(place) if len(place) == 1 else f"[{_runs(place)}]" for place in places]
        made.append(first + "".join(run + piece for run, piece in zip(runs, rest, strict=True)))
    return made


def _runs(numbers: Iterable[int]) -> str:
    """ "0-2, 5" for 0, 1, 2 and 5."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
