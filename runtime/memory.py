"""The cache of a program's layers: allocated once for the artefact's bounds, written in place, read up to the filled slots."""

from __future__ import annotations

import math
from typing import Any

import torch

from glmc.program import Program, Spec, held_slots


def slots_of(manifest: dict[str, Any]) -> tuple[int, int]:
    """The least slots that a view of the cache may have (an indexer chooses a fixed number of them), and the most."""
    least = max(2, manifest["dims"].get("index_topk", 0))
    return least, max(manifest["bounds"]["max_len"], least)


def cache_bytes(program: Program, manifest: dict[str, Any]) -> int:
    """What `Cache` takes for the artefact's bounds."""
    rows = manifest["bounds"]["max_batch"] * held_slots(slots_of(manifest)[1])
    return sum(rows * math.prod(map(int, spec.shape[2:])) * getattr(torch, spec.dtype).itemsize
               for spec in _named(program).values())


class Cache:
    """Every tensor that the program's steps name `cache:NAME.LAYER`, [rows, slots, ...]; memory is touched as slots fill.

    `slots`: of a row, more than views may have; compiled code has the distance between rows as a number.
    """

    def __init__(self, program: Program, max_batch: int, slots: int, device: torch.device) -> None:
        self.slots = held_slots(slots)
        self.whole = {name: torch.zeros(max_batch, self.slots, *map(int, spec.shape[2:]), dtype=getattr(torch, spec.dtype),
                                        device=device) for name, spec in _named(program).items()}

    def views(self, first: int, rows: int, slots: int) -> dict[str, torch.Tensor]:
        """Rows `first` to `first + rows`, the first `slots` slots of each: {"cache:keys.0": [rows, slots, Hkv, D], ...}."""
        return {name: whole.narrow(0, first, rows).narrow(1, 0, slots) for name, whole in self.whole.items()}


def _named(program: Program) -> dict[str, Spec]:
    return {name: spec for step in program.steps if not step.moves
            for name, (_, role, spec) in zip(step.inputs, program.regions[step.region].inputs, strict=True) if role == "cache"}
