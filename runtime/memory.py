"""The cache of a program's layers: allocated once for the artefact's bounds, written in place, read up to the filled slots."""

from __future__ import annotations

import math
from typing import Any

import torch

from glmc.program import Program, Spec


def slots_of(manifest: dict[str, Any]) -> tuple[int, int]:
    """The least slots that a view of the cache may have (an indexer chooses a fixed number of them), and the most."""
    least = max(2, manifest["dims"].get("index_topk", 0))
    return least, max(manifest["bounds"]["max_len"], least)


def cache_bytes(program: Program, manifest: dict[str, Any]) -> int:
    """What `Cache` takes for the artefact's bounds."""
    rows = manifest["bounds"]["max_batch"] * _held(slots_of(manifest)[1])
    return sum(rows * math.prod(map(int, spec.shape[2:])) * getattr(torch, spec.dtype).itemsize
               for spec in _named(program).values())


class Cache:
    """Every tensor that the program's steps name `cache:NAME.LAYER`, [rows, slots, ...]; memory is touched as slots fill.

    `slots`: more than views may have, since compiled code was made for views that are never the whole cache (see
    passes/lower.py), and so many that every row begins where compiled code reads.
    """

    def __init__(self, program: Program, max_batch: int, slots: int, device: torch.device) -> None:
        self.slots = _held(slots)
        self.whole = {name: torch.zeros(max_batch, self.slots, *map(int, spec.shape[2:]), dtype=getattr(torch, spec.dtype),
                                        device=device) for name, spec in _named(program).items()}

    def views(self, first: int, rows: int, slots: int) -> dict[str, torch.Tensor]:
        """Rows `first` to `first + rows`, the first `slots` slots of each: {"cache:keys.0": [rows, slots, Hkv, D], ...}."""
        return {name: whole.narrow(0, first, rows).narrow(1, 0, slots) for name, whole in self.whole.items()}


def _held(slots: int) -> int:
    """The slots to allocate for `slots` in use: at least one more, and a multiple of 32, which of any width are 64 bytes."""
    return (slots // 32 + 1) * 32


def _named(program: Program) -> dict[str, Spec]:
    return {name: spec for step in program.steps if not step.moves
            for name, (_, role, spec) in zip(step.inputs, program.regions[step.region].inputs, strict=True) if role == "cache"}
