"""A program that several ranks run together, each with its share of the weights: how weights are cut, and for how many ranks.

A weight is cut along one dim, and each of its parts by itself: `qkv_proj` holds the queries', keys' and values' rows one after
another, and rank r of N has the r-th of N pieces of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glmc.errors import DamagedArtifact
from glmc.program import Program, read_part

if TYPE_CHECKING:
    import torch

FIELD = "parallel"
"""Of program.json: the text model as several ranks run it."""
ONE_RANK = ("aoti", "onnx", "iree", "mlir")
"""Engines whose code is compiled for whole weights: they run on one rank."""


@dataclass(frozen=True)
class Cut:
    """dim: counted from the last. parts: the sizes along it that are cut each by itself, in order."""

    dim: int
    parts: tuple[int, ...]

    @property
    def size(self) -> int:
        """The whole size along `dim`."""
        return sum(self.parts)

    def ranges(self, rank: int, size: int) -> list[tuple[int, int]]:
        """Where rank `rank` of `size` has its share: from, to, for each part."""
        found, at = [], 0
        for part in self.parts:
            found.append((at + part // size * rank, at + part // size * (rank + 1)))
            at += part
        return found

    def share(self, whole: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        """Rank `rank`'s share of a tensor, in memory of its own."""
        import torch

        return torch.cat([whole.narrow(self.dim, a, b - a) for a, b in self.ranges(rank, size)], self.dim)

    def of(self, sizes: tuple[int, ...], ranks: int) -> tuple[int, ...]:
        """The sizes of a share."""
        return tuple(n // ranks if i == len(sizes) + self.dim else n for i, n in enumerate(sizes))


@dataclass(frozen=True)
class Placement:
    """program: with sizes `96//N`. cuts: weight -> how it is cut; the others every rank has whole. ranks: how many may run it,
    from 2 on, where the forms of its weights are known."""

    program: Program
    cuts: Mapping[str, Cut]
    ranks: tuple[int, ...] = ()

    @property
    def most(self) -> int:
        """The numbers of ranks that divide every size are the divisors of this one."""
        parts = [part for cut in self.cuts.values() for part in cut.parts]
        return math.gcd(*parts, *(size for region in self.program.regions.values() for size in region.shares()))

    def degrees(self) -> tuple[int, ...]:
        """How many ranks divide all sizes, from 2 on."""
        return tuple(n for n in range(2, self.most + 1) if self.most % n == 0)

    def to_json(self) -> dict[str, Any]:
        return {**self.program.to_json(), "ranks": list(self.ranks),
                "cuts": {name: [cut.dim, list(cut.parts)] for name, cut in self.cuts.items()}}


def read_placement(data: dict[str, Any], text_of: Callable[[str], str]) -> Placement | None:
    """What program.json says of ranks, None where it says nothing. text_of: a region's name -> its text.

    Raises DamagedArtifact.
    """
    part = data.get(FIELD)
    if part is None:
        return None
    try:
        ranks = tuple(map(int, part["ranks"]))
        cuts = {name: Cut(int(dim), tuple(map(int, parts))) for name, (dim, parts) in part["cuts"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as fault:
        raise DamagedArtifact("how the weights are cut cannot be read", file="program.json", field=FIELD,
                              found=fault) from fault
    return Placement(read_part(part, text_of), cuts, ranks)
