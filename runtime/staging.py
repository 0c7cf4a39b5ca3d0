"""Weights on their way to a device: read and hashed into page-locked buffers, and copied from there while the next is read.

Each thread that reads has two buffers of its own, so it waits for a copy only when the device is slower than the file.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from glmc.errors import StorageError

PIECE = 4 << 20
"""Bytes of a buffer: a copy takes far longer than it takes to ask for, and the buffers of many threads stay small."""


class Staging:
    """Makes memory at `place` for one file after another: see `glmc.artifact_load.Memory`.

    On a GPU the buffers are page-locked and the copies run on a stream of their own. Elsewhere a copy is made at once.
    """

    def __init__(self, place: torch.device, piece: int = PIECE) -> None:
        self.place, self.piece = place, piece
        self.stream = torch.cuda.Stream(place) if place.type == "cuda" else None
        self._own = threading.local()

    def __call__(self, size: int, path: Path) -> Staged:
        """Memory for `size` bytes of the file `path`. Raises StorageError where there is none."""
        try:
            with torch.cuda.stream(self.stream):  # for None it changes nothing
                whole = torch.empty(size, dtype=torch.uint8, device=self.place)
        except torch.OutOfMemoryError as fault:
            raise StorageError("the device has no memory left for the weights", file=path, expected=f"{size} bytes",
                               found=str(fault)) from fault
        if self.stream is not None:
            whole.record_stream(torch.cuda.current_stream(self.place))
        return Staged(self, whole)

    def buffers(self) -> list[Buffer]:
        """The two buffers of this thread, the one that was filled longer ago first. Raises StorageError."""
        if not hasattr(self._own, "buffers"):
            self._own.buffers = [Buffer(self.piece, self.stream) for _ in range(2)]
        self._own.buffers.reverse()
        return self._own.buffers


class Buffer:
    """Host memory, page-locked where there is a stream, and when its last copy was made."""

    def __init__(self, size: int, stream: torch.cuda.Stream | None) -> None:
        try:
            self.tensor = torch.empty(size, dtype=torch.uint8, pin_memory=stream is not None)
        except RuntimeError as fault:
            raise StorageError("there is no page-locked memory to load weights through", expected=f"{size} bytes",
                               found=str(fault), hint="free host memory, or load with fewer threads") from fault
        self.view = memoryview(self.tensor.numpy())
        self._stream, self._copied = stream, torch.cuda.Event() if stream is not None else None

    def copy(self, into: Tensor) -> None:
        """Have the first bytes copied into `into`."""
        with torch.cuda.stream(self._stream):
            into.copy_(self.tensor[:len(into)], non_blocking=True)
        if self._copied is not None:
            self._copied.record(self._stream)

    def wait(self) -> None:
        """Until the last copy was made."""
        if self._copied is not None:
            self._copied.synchronize()


class Staged:
    """One file's memory on a device, uint8 `whole`."""

    def __init__(self, staging: Staging, whole: Tensor) -> None:
        self.staging, self.whole = staging, whole

    def rooms(self, begin: int, count: int) -> Iterator[memoryview]:
        """Host memory to fill for the bytes from `begin` on, piece after piece; asking for the next sends off the last."""
        for start in range(begin, begin + count, self.staging.piece):
            into = self.whole[start:min(start + self.staging.piece, begin + count)]
            buffer = self.staging.buffers()[0]
            buffer.wait()
            yield buffer.view[:len(into)]
            buffer.copy(into)

    def settle(self) -> None:
        """Wait until all that this thread sent off is there."""
        for buffer in self.staging.buffers():
            buffer.wait()
