"""A learned square table of positions, sampled where an image's patches lie on it, and beyond the table's edge its edge."""

from __future__ import annotations

import torch

from glmc.kernels import opaque
from glmc.kernels.position_table import sampled


def accepts(site) -> str | None:
    return None


opaque("position_table", "(Tensor table, Tensor positions, Tensor ends, Tensor grid, bool cubic=True) -> Tensor")(sampled)


@torch.library.impl("glmc::position_table", "Meta")
def _(table: torch.Tensor, positions: torch.Tensor, ends: torch.Tensor, grid: torch.Tensor, cubic: bool = True) -> torch.Tensor:
    return table.new_empty(positions.shape[0], table.shape[1])


def run(table: torch.Tensor, positions: torch.Tensor, ends: torch.Tensor, grid: torch.Tensor, cubic: bool = True,
        ) -> torch.Tensor:
    """table [side * side, H]; positions int64 [P, 2], row and column of each patch; ends int32 [F + 1], 0 and the patches up
    to the end of each image; grid int64 [F, 3], 1, height and width -> [P, H] in the table's dtype, computed in float32.
    cubic: or else linear on both axes.
    """
    return torch.ops.glmc.position_table(table, positions, ends, grid, cubic)
