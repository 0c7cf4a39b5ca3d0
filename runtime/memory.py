"""The cache of a program's layers: allocated once for the artefact's bounds, written in place, read up to the filled slots."""

from __future__ import annotations

import torch

from glmc.program import Program


class Cache:
    """Every tensor that the program's steps name `cache:NAME.LAYER`, [rows, slots, ...]; memory is touched as slots fill.

    One slot more than views may have: compiled code was made for views that are never the whole cache (see passes/lower.py).
    """

    def __init__(self, program: Program, max_batch: int, slots: int, device: torch.device) -> None:
        self.whole: dict[str, torch.Tensor] = {}
        for step in program.steps:
            for name, (_, role, spec) in zip(step.inputs, program.regions[step.region].inputs, strict=True):
                if role == "cache":
                    self.whole[name] = torch.zeros(max_batch, slots + 1, *map(int, spec.shape[2:]),
                                                   dtype=getattr(torch, spec.dtype), device=device)

    def views(self, first: int, rows: int, slots: int) -> dict[str, torch.Tensor]:
        """Rows `first` to `first + rows`, the first `slots` slots of each: {"cache:keys.0": [rows, slots, Hkv, D], ...}."""
        return {name: whole.narrow(0, first, rows).narrow(1, 0, slots) for name, whole in self.whole.items()}
