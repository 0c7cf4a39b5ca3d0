"""Ranks in one process: threads that meet at every exchange."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch


class Rank:
    """One rank of a group of threads, as glmc.runtime.ranks.Ranks has it."""

    def __init__(self, rank: int, size: int, shelf: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size, self.shelf, self.barrier = rank, size, shelf, barrier

    def _all(self, given: Any) -> list[Any]:
        self.shelf[self.rank] = given
        self.barrier.wait(60)
        found = list(self.shelf)
        self.barrier.wait(60)
        return found

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.stack(self._all(tensor)).sum(0)

    def all_gather(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        return torch.cat(self._all(tensor), dim)

    def main_then_broadcast(self, stage: str, run: Callable[[], Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return dict(self._all(run() if self.rank == 0 else None)[0])


def together(size: int, run: Callable[[Rank], Any]) -> list[Any]:
    """What `run` returns on each of `size` ranks, all at once; the first fault of any is raised."""
    shelf, barrier = [None] * size, threading.Barrier(size)

    def one(rank: int) -> Any:
        try:
            return run(Rank(rank, size, shelf, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return [done.result() for done in [pool.submit(one, rank) for rank in range(size)]]
