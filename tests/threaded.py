"""Ranks as threads of one process, each with a world of its own: for tests of what they say to each other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from glmc.runtime.rendezvous import Meeting
from glmc.runtime.world import World

RUN = b"a run of threads"


def together(size: int, *works: Callable[[World], Any], deadline: float = 10.0, kind: type[World] = World) -> list[Any]:
    """What each rank's work returned or raised; the last of `works` is also that of all ranks after it."""
    store, outcome = dist.HashStore(), [None] * size
    worlds: list[World] = []  # kept to the end: a world that is given up closes its connections

    def go(rank: int) -> None:
        try:
            world = kind(Meeting(rank, size, store, RUN, True), deadline)
            worlds.append(world)
            outcome[rank] = works[min(rank, len(works) - 1)](world)
        except Exception as error:
            outcome[rank] = error

    threads = [threading.Thread(target=go, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a rank hangs"
    return outcome
