"""Ranks for tests: threads of one process that exchange tensors through memory that they share, and processes over gloo."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from glmc.runtime.session import load
from glmc.runtime.world import World


class Threads:
    """One of several ranks that are threads of this process; see glmc.runtime.ranks. `moves` counts what went between them."""

    def __init__(self, rank: int, size: int, meet: threading.Barrier, table: list[Any]) -> None:
        self.rank, self.size, self.meet, self._table = rank, size, meet, table
        self.moves: list[str] = []

    def _exchange(self, what: Any) -> list[Any]:
        self._table[self.rank] = what
        self.meet.wait(60)
        found = list(self._table)
        self.meet.wait(60)
        return found

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        self.moves.append("all_reduce")
        return torch.stack(self._exchange(tensor.clone())).sum(0)

    def all_gather(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        self.moves.append("all_gather")
        return torch.cat(self._exchange(tensor.clone()), dim)

    def main_then_broadcast(self, stage: str, run: Callable[[], Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        self.moves.append(stage)
        return dict(self._exchange(dict(run()) if self.rank == 0 else None)[0])


def threads(size: int) -> list[Threads]:
    """So many ranks."""
    meet, table = threading.Barrier(size), [None] * size
    return [Threads(rank, size, meet, table) for rank in range(size)]


def together(ranks: list[Any], work: Callable[[Any], Any]) -> list[Any]:
    """What `work` returns for each rank's own, all at once. What one raises is raised, and the others stop waiting for it.

    Models are loaded before, one after another: Python 3.11 cannot parse in several threads at once.
    """
    def one(own: Any) -> Any:
        try:
            return work(own)
        except BaseException:
            getattr(own, "ranks", own).meet.abort()
            raise

    with ThreadPoolExecutor(len(ranks)) as pool:
        futures = [pool.submit(one, own) for own in ranks]
        faults = [fault for future in futures if (fault := future.exception()) is not None]
    wrong = [fault for fault in faults if not isinstance(fault, threading.BrokenBarrierError)] or faults
    if wrong:
        raise wrong[0]
    return [future.result() for future in futures]


def process(rank: int, place: Any, out: Any, ids: list[int], told: Any) -> None:
    """The main of one of two processes: puts the logits of a prompt, as lists, into the queue `told`."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    world = World.open(60.0, place)
    model = load(out, threads=1, ranks=world)
    told.put(model.logits(torch.tensor([ids])).tolist())
    told.close()
    told.join_thread()
    world.close()
    os._exit(0)  # gloo would abort a process that ends by itself
