"""Processes that work together as ranks, or one alone, and wait in between: contenders of a benchmark that take turns."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from glmc.runtime.ranks import Alone, Ranks
from glmc.runtime.world import World

DEADLINE = 600.0
Opened = Callable[[Ranks, int], Callable[[], Any]]
"""(the ranks, threads) -> what makes a sample; a function of a module, since other processes call it."""


def _serve(rank: int, size: int, threads: int, place: str, opened: Any, given: tuple, asked: Any, told: Any) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)}
    torch.set_num_threads(threads)
    sample = opened(World.open(DEADLINE, Path(place)) if size > 1 else Alone(), threads, *given)
    told.put("ready")
    while asked.get():
        told.put(sample())
    told.put("ended")
    told.close()
    told.join_thread()
    os._exit(0)  # gloo would abort a process that ends by itself


class Contender:
    """`ranks` processes of `threads` threads; `opened(world, threads, *given)` gives each its `sample()`."""

    def __init__(self, ranks: int, threads: int, place: Path, opened: Callable[..., Callable[[], Any]], *given: Any) -> None:
        context = torch.multiprocessing.get_context("spawn")
        os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # as `glmc run --ranks` sets it
        self.lines = [(context.Queue(), context.Queue()) for _ in range(ranks)]
        self.processes = [context.Process(target=_serve, args=(rank, ranks, threads, str(place), opened, given, *lines))
                          for rank, lines in enumerate(self.lines)]
        for process in self.processes:
            process.start()
        for _, told in self.lines:
            told.get(timeout=DEADLINE)

    def sample(self) -> list[Any]:
        """What each rank's sample gave, all at the same time."""
        for asked, _ in self.lines:
            asked.put(True)
        return [told.get(timeout=DEADLINE) for _, told in self.lines]

    def end(self) -> None:
        for asked, _ in self.lines:
            asked.put(False)
        for process in self.processes:
            process.join(30)
