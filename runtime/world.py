"""All processes of a run, as `Ranks`: opened once, taken apart into groups, and closed together."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from glmc.errors import UsageError
from glmc.runtime.broadcast import broadcast
from glmc.runtime.collectives import Collectives
from glmc.runtime.device_group import BACKENDS, DeviceGroup
from glmc.runtime.exchange import Exchange
from glmc.runtime.ranks import MAIN
from glmc.runtime.rendezvous import Meeting, gloo, meet


class Group(Collectives):
    """Some ranks of a world, numbered anew. What is broadcast comes from the world's rank MAIN and goes to the whole world."""

    def __init__(self, world: World, exchange: Exchange, on_device: DeviceGroup | None) -> None:
        super().__init__(exchange, world.run, on_device)
        self._world = world

    def main_then_broadcast(self, stage: str, run: Callable[[], Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """As the world's, which every rank of the world must call."""
        return self._world.main_then_broadcast(stage, run)


class World(Collectives):
    """All ranks. Every wait ends after `deadline` seconds; then, and after any other error, the world is of no use."""

    def __init__(self, meeting: Meeting, deadline: float, device: str | None = None) -> None:
        self.meeting, self.deadline = meeting, deadline
        self._backend = BACKENDS.get((device or "cpu").partition(":")[0])
        if self._backend:
            dist.init_process_group(self._backend, store=dist.PrefixStore("device", meeting.store), rank=meeting.rank,
                                    world_size=meeting.size, timeout=timedelta(seconds=deadline))
        members = tuple(range(meeting.size))
        exchange = Exchange(gloo(meeting, "world", meeting.rank, meeting.size, deadline), meeting.rank, members, meeting.store,
                            deadline)
        super().__init__(exchange, meeting.run, DeviceGroup(None, meeting.size) if self._backend else None)

    @classmethod
    def open(cls, deadline: float, file: Path | None = None, device: str | None = None) -> World:
        """Meet the others by `file`, or as torchrun says. device: whose tensors are moved besides the host's.

        Raises RankError, UsageError.
        """
        return cls(meet(deadline, file), deadline, device)

    def main_then_broadcast(self, stage: str, run: Callable[[], Mapping[str, torch.Tensor]],
                            not_finite: Collection[str] = ()) -> dict[str, torch.Tensor]:
        """What `run` returns on rank MAIN, which alone calls it, on every rank; what it raises is raised on every rank.

        The tensors come back on the host. not_finite: names of tensors that may hold NaN or infinity. Raises RankError,
        NumericError for a value that is not finite, and what `run` raised.
        """
        return broadcast(self, stage, run, not_finite)

    def groups(self, **sizes: int) -> dict[str, Group]:
        """The world as a grid, the last axis the quickest: for each name the group of ranks that differ in that axis alone.

        `groups(cfg=2, sequence=2)`: of 4 ranks, 0 and 1 share a sequence, and 0 and 2 have the two halves of guidance. The
        order of names must be the same on every rank. Raises UsageError unless the sizes multiply to the world's, RankError.
        """
        if math.prod(sizes.values()) != self.size or min(sizes.values(), default=0) < 1:
            raise UsageError("the groups do not fill the world", field=", ".join(sizes), found=[*sizes.values()],
                             expected=f"a product of {self.size} ranks")
        made, stride = {}, self.size
        for name, size in sizes.items():
            stride //= size
            place = self.rank // stride % size
            members = tuple(self.rank + (i - place) * stride for i in range(size))
            key = f"{name}/{members[0]}"
            exchange = Exchange(gloo(self.meeting, key, place, size, self.deadline), place, members, self.meeting.store,
                                self.deadline)
            made[name] = Group(self, exchange, self._on_device(members))
        return made

    def _on_device(self, members: tuple[int, ...]) -> DeviceGroup | None:
        """torch.distributed makes a group in all processes or in none, so that every rank makes those of the others too."""
        if not self._backend:
            return None
        group: Any = dist.new_group([*members], use_local_synchronization=True)
        return DeviceGroup(group, len(members))

    def close(self) -> None:
        """Part together: nobody leaves while another still works. Raises RankError where one has left already."""
        self.part()
        if self._backend:
            dist.destroy_process_group()


def is_main(world: Collectives) -> bool:
    """Whether this rank speaks to the user."""
    return world.rank == MAIN
