"""The published order of patches: blocks of merge x merge in rows, and rows inside each block."""

from __future__ import annotations

import torch


def order(grid: torch.Tensor, merge: int) -> torch.Tensor:
    """grid int64 [F, 3], one row a medium: frames, height and width in patches -> int64 [P, 2], each patch's row and column."""
    return torch.cat([_of_one(int(height), int(width), merge).repeat(int(frames), 1) for frames, height, width in grid])


def ends(grid: torch.Tensor) -> torch.Tensor:
    """grid int64 [F, 3] of one frame a row -> int32 [F + 1]: 0, then the patches up to the end of each image or frame."""
    return torch.cat([grid.new_zeros(1), grid.prod(1).cumsum(0)]).int()


def _of_one(height: int, width: int, merge: int) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    both = torch.stack([rows, columns], -1).view(height // merge, merge, width // merge, merge, 2)
    return both.transpose(1, 2).reshape(-1, 2)
