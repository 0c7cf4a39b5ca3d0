"""The op `position_table`, and its plain form."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from glmc.errors import InternalError


def sampled(table: torch.Tensor, positions: torch.Tensor, ends: torch.Tensor, grid: torch.Tensor, cubic: bool = True,
            ) -> torch.Tensor:
    """table [side * side, H]; positions int64 [P, 2], row and column of each patch; ends int32 [F + 1], 0 and the patches up
    to the end of each image; grid int64 [F, 3], 1, height and width -> [P, H] in the table's dtype, computed in float32.
    cubic: or else linear on both axes.
    """
    side = math.isqrt(table.shape[0])
    if side * side != table.shape[0]:
        raise InternalError("a table of positions that is not square", field="table", found=table.shape[0])
    square = table.unflatten(0, (side, side)).permute(2, 0, 1).unsqueeze(0).float()
    sizes = torch.repeat_interleave(grid[:, 1:].float(), ends.diff().long(), dim=0, output_size=positions.shape[0])
    places = ((positions + 0.5) / sizes) * 2 - 1
    found = functional.grid_sample(square, places.flip(-1)[None, :, None], "bicubic" if cubic else "bilinear", "border",
                                   align_corners=False)
    return found[0, :, :, 0].T.to(table.dtype)
