"""Timing fusions without a GPU: figures from a script, and a clock on the wall that keeps what was calculated."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import traced

from glmc.kernels.timing import Figure, figure
from glmc.passes import declare
from glmc.passes.faster import Bucket, Judge, Piece, Timing, beside, buckets
from glmc.passes.lower import Bounds
from glmc.passes.prove import capture
from glmc.passes.replay import all_of

FAST = {"ours": 2.0, "plain": 5.0, "inductor": 3.0}
SLOW = {"ours": 5.0, "plain": 2.0, "inductor": 3.0}


def timing(bucket: Bucket, told: dict[str, float | str]) -> Timing:
    """told: contender -> microseconds, or the reason why there are none."""
    return Timing(bucket, {k: Figure(v, 0.01) for k, v in told.items() if not isinstance(v, str)},
                  {k: v for k, v in told.items() if isinstance(v, str)})


def judge(script: Callable[[str, Bucket], dict[str, float | str]], bounds: Bounds | None = None,
          ) -> tuple[Judge, list[Piece]]:
    """A judge with figures by fusion and bucket, and the pieces it was asked for, each once. With bounds it also knows what
    stands beside the text."""
    pieces: list[Piece] = []

    def measure(piece: Piece, bucket: Bucket, values: dict[Any, int]) -> Timing:
        if not any(known is piece for known in pieces):
            pieces.append(piece)
        return timing(bucket, script(piece.captured.fusion, bucket))

    return Judge((*buckets(bounds or Bounds(2, 64)), *(beside(bounds) if bounds else ())), measure), pieces


def piece() -> Piece:
    """A distinct site without symbols: every size of it is known anywhere."""
    fusion = declare.load("silu_mul")
    graph = traced.graph_of(lambda gate, up: fusion.reference(gate, up), [torch.empty(3, 8, device="meta")] * 2, {})
    (captured,) = capture(traced.find(fusion, graph).sites)
    return Piece(captured, None)


class Wall:
    """A clock for the CPU. results: of each timed call, in order."""

    device = torch.device("cpu")

    def __init__(self, sets: int = 1) -> None:
        self._sets = sets
        self.results: list[tuple[torch.Tensor, ...]] = []
        self.recovered = 0

    def sets(self, size: int) -> int:
        return self._sets

    def __call__(self, call: Callable[[Any], Any], inputs: list[Any]) -> Figure:
        samples = []
        with torch.no_grad():
            for number in range(3):
                began = time.perf_counter()
                made = call(inputs[number % len(inputs)])
                samples.append((time.perf_counter() - began) * 1e6)
        self.results.append(tuple(r.clone() for r in all_of(made)))
        return figure(samples)

    def recover(self) -> None:
        self.recovered += 1
