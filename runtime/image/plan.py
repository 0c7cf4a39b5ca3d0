"""Which rows of patches of a picture each rank holds: one plan by which latents, image tokens and rotary rows are cut alike."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from glmc.errors import RequestOutOfBounds
from glmc.runtime.image.sizes import PATCH, SIDE
from glmc.runtime.ranks import Ranks


def check_rows(height: int, ranks: int) -> None:
    """Refuse a picture whose rows so many ranks cannot share, before any of them starts. Raises RequestOutOfBounds."""
    Rows(height // PATCH, max(1, ranks))


@dataclass(frozen=True)
class Rows:
    """`total` rows of patches in equal runs, one a rank, in the order of the ranks. Nothing is padded: padding would be seen by
    attention."""

    total: int
    ranks: int = 1

    def __post_init__(self) -> None:
        """Raises RequestOutOfBounds where the rows do not divide, with the nearest heights of a picture that do."""
        if self.total % self.ranks:
            step = math.lcm(SIDE, PATCH * self.ranks)
            below = self.total * PATCH // step * step
            near = " or ".join(str(height) for height in (below, below + step) if height)
            raise RequestOutOfBounds("the rows of patches do not divide among the ranks", field="height",
                                     expected=f"{near} for {self.ranks} ranks",
                                     found=f"{self.total * PATCH}, which is {self.total} rows of patches")

    def numbers(self, rank: int) -> torch.Tensor:
        """int64 [total / ranks], the rows that a rank holds."""
        each = self.total // self.ranks
        return torch.arange(rank * each, (rank + 1) * each)

    def cut(self, tensor: torch.Tensor, dim: int, rank: int) -> torch.Tensor:
        """A rank's share of a tensor whose `dim` holds all rows, a whole number of entries each."""
        each = tensor.shape[dim] // self.ranks
        return tensor.narrow(dim, rank * each, each).contiguous()

    def joined(self, tensor: torch.Tensor, dim: int, ranks: Ranks) -> torch.Tensor:
        """All ranks' shares as one tensor, on every rank. Raises RankError."""
        return tensor if self.ranks == 1 else ranks.all_gather(tensor.contiguous(), dim)
