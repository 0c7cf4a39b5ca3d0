"""Lanes from the rows that an axis map names: no op of the vendor does it, so one gather by an index."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from glmc.kernels.pick_lanes.cpu import check


def accepts(site) -> str | None:
    return None


def run(x: torch.Tensor, axis_map: Sequence[int]) -> torch.Tensor:
    """x [A, ..., n]; axis_map n rows in [0, A) -> [..., n] with out[..., i] = x[axis_map[i], ..., i]."""
    check(x, axis_map)
    rows = torch.tensor(list(axis_map), device=x.device).expand(1, *x.shape[1:])
    return x.gather(0, rows)[0]
