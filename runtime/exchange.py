"""One frame from each rank of a group to each other, over gloo, with a deadline: what every call between ranks begins with.

A frame has one size for all, whatever it carries, so that ranks which disagree about what comes still read whole frames.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch

from glmc.errors import GlmcError, RankError
from glmc.runtime.envelope import HEADER, decode_object, encode_object
from glmc.runtime.rank_fault import RankFault
from glmc.runtime.within import within

BODY = -(-HEADER // 64) * 64
"""Where the inline part of a frame begins, aligned for any dtype."""
INLINE = 1 << 14
"""The most bytes that travel in the frame itself."""
FRAME = BODY + INLINE
HUB = 0
NOTE = 0.5
"""Seconds to look for, or to leave, a note in the store, which may have gone with its host."""
PATIENCE = 0.5
"""Seconds that the others wait longer than HUB, which knows better who is late."""
_TAG, _PAYLOAD = 0, 1  # gloo's tags


class _Room:
    """Where the frames of one swap stand: all in one piece, and one by one as tensors and as bytes."""

    def __init__(self, size: int) -> None:
        self.whole = torch.zeros(size * FRAME, dtype=torch.uint8)
        self.tensors = [*self.whole.split(FRAME)]
        self.frames = [memoryview(tensor.numpy()) for tensor in self.tensors]


class Exchange:
    """`outgoing`, as bytes `mine`, is the frame to send next; `tensors` and `frames` are what all ranks sent last.

    group: a ProcessGroupGloo, or whatever sends and receives as it does. members: the world's number of each rank of the group.
    store: where a rank leaves a note about its fault, for those who only see that it has gone. deadline: seconds of every wait.
    """

    def __init__(self, group: Any, rank: int, members: tuple[int, ...], store: Any, deadline: float) -> None:
        self.group, self.rank, self.members, self.store, self.deadline = group, rank, members, store, deadline
        self._peers = [i for i in range(len(members)) if i != rank]
        self._told: list[Any] = []
        self._here, self._next = _Room(len(members)), _Room(len(members))
        self._own = _Room(1)
        self._await("start")

    @property
    def tensors(self) -> list[torch.Tensor]:
        """uint8 [FRAME] of each rank, valid until the next swap."""
        return self._here.tensors

    @property
    def frames(self) -> list[memoryview]:
        """`tensors` as bytes."""
        return self._here.frames

    def _await(self, stage: str) -> None:
        """Begin to receive what the next swap brings: what is sent to a rank that waits arrives a round sooner."""
        room = self._next
        own = room if self.rank == HUB else self._own
        self.outgoing, self.mine = own.tensors[0], own.frames[0]
        sources = [(i, room.tensors[i]) for i in self._peers] if self.rank == HUB else [(HUB, self._from_hub(room))]
        self._coming = [(i, self._begin(self.group.recv, tensor, i, _TAG, stage)) for i, tensor in sources]

    def swap(self, stage: str) -> None:
        """Send `mine` and receive all others' frames. Raises what a peer died of, else RankError that names the peer.

        All frames go to rank HUB, which sends all of them to all: two hops, whatever the number of ranks. Two ranks that send
        at the same time are slower: gloo then stalls for whole ticks of the scheduler.
        """
        targets = self._peers if self.rank == HUB else [HUB]
        if self.rank == HUB:
            self._arrive(stage)
        mine = self._from_hub(self._next) if self.rank == HUB else self.outgoing
        sent = [(i, self._begin(self.group.send, mine, i, _TAG, stage)) for i in targets]
        for i, work in sent:
            self.wait(work, i, stage)
        if self.rank != HUB:
            self._arrive(stage)
            if not self._peers[1:]:
                self._next.frames[self.rank][:] = self.mine
        self._here, self._next = self._next, self._here
        self._await(stage)

    def _from_hub(self, room: _Room) -> torch.Tensor:
        """What HUB sends: all frames, or to the only other one its own."""
        return room.whole if self._peers[1:] else room.tensors[HUB]

    def _arrive(self, stage: str) -> None:
        for i, work in self._coming:
            self.wait(work, i, stage)

    def leave(self) -> None:
        """After the last swap: HUB stays until the others have what it sent, which would be lost with its connections."""
        if self.rank == HUB:
            for _, work in self._coming:
                try:
                    work.wait(timedelta(seconds=self.deadline))
                except RuntimeError as fault:  # it has everything, and has gone
                    self._told.append(fault)
        else:
            self.wait(self._begin(self.group.send, self.outgoing, HUB, _TAG, "close"), HUB, "close")

    def trade(self, mine: torch.Tensor, theirs: torch.Tensor, stage: str) -> None:
        """Between two ranks: `mine`, uint8 [n], for the other's tensor of as many bytes, which is written to `theirs`.

        One after the other: a third of the time of gloo's all_gather at 1 MB, where both send at once.
        """
        turns = ((self.group.recv, theirs), (self.group.send, mine))
        for call, tensor in turns if self.rank == HUB else turns[::-1]:
            self.wait(self._begin(call, tensor, 1 - self.rank, _PAYLOAD, stage), 1 - self.rank, stage)

    def _begin(self, call: Any, tensor: torch.Tensor, peer: int, tag: int, stage: str) -> Any:
        try:
            return call([tensor], peer, tag)
        except RuntimeError as fault:
            raise self.lost(fault, peer, stage) from fault

    def wait(self, work: Any, peer: int | None, stage: str) -> None:
        """Wait for a call of gloo's that was begun; peer: whom it waits for, None for all. Raises as `swap` does."""
        try:
            work.wait(timedelta(seconds=self.deadline + PATIENCE * (self.rank != HUB)))
        except RuntimeError as fault:
            raise self.lost(fault, peer, stage) from fault

    def lost(self, fault: Exception, peer: int | None, stage: str) -> GlmcError:
        """The error to raise where a peer did not answer: its own, where it left a note."""
        if noted := self._note():
            return noted.error()
        whose = tuple(self.members[i] for i in ([peer] if peer is not None else self._peers))
        text = str(fault).lower()
        if "timed out" in text or "timeout" in text:
            return RankFault(f"fell silent: nothing came within the deadline of {self.deadline:g} s", ranks=whose, stage=stage,
                             hint="raise --deadline if the rank is healthy and slow").error()
        return RankFault("has gone: its connection was closed", ranks=whose, stage=stage).error()

    def tell(self, fault: RankFault, frame: bytes) -> None:
        """Let the others know why this rank stops, without waiting for them: as a note, and as its part of their next swap."""
        try:
            within(NOTE, lambda: self.store.set(f"fault/{self.members[self.rank]}", encode_object(fault.to_json())))
            tensor = torch.zeros(FRAME if self.rank != HUB else len(self._from_hub(self._here)), dtype=torch.uint8)
            tensor[:len(frame)] = torch.frombuffer(bytearray(frame), dtype=torch.uint8)
            self._told = [(tensor, self.group.send([tensor], i, _TAG)) for i in self._peers]
        except (RuntimeError, TimeoutError) as error:  # the others have gone, or their store has: they know already
            self._told = [error]

    def _note(self) -> RankFault | None:
        def look() -> RankFault | None:
            noted = (f"fault/{rank}" for rank in self.members if self.store.check([f"fault/{rank}"]))
            return next((RankFault.from_json(decode_object(self.store.get(name))) for name in noted), None)

        try:
            return within(NOTE, look)
        except (RuntimeError, RankError, TimeoutError):  # the store has gone, or the way to it, or the note is damaged
            return None
