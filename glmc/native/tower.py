"""A vision tower on the native library: patches of any number of images in, a row for each block of them out.

Patches of one image see each other, so a step has whole images: as many as STEP patches hold, or one that is larger. What a
step needs grows with its patches (`patch_bytes` each, 46 KB in GLM-4.1V) and stays for the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from glmc.errors import RequestOutOfBounds
from glmc.native.cache import PANEL
from glmc.native.compose import whole
from glmc.native.executor import Executor, token_bytes
from glmc.native.keep import Keep
from glmc.program import Program

STEP = 2048
"""Patches that are run at once, where images are smaller than that."""


class Tower:
    """The program of a vision tower on `threads` threads. Raises Refused where it holds what no native kernel does."""

    def __init__(self, program: Program, weights: Mapping[str, torch.Tensor], kept: Mapping[str, Keep], threads: int) -> None:
        self._flat, self._threads = whole(program), threads
        self._weights, self._kept = weights, kept
        self.merge = self._flat.items[-1].call.per
        """Patches that become one row."""
        self._pixels = self._flat.values["input:pixels"]
        self.pixels, self.hidden = (self._flat.widths[reg] for reg in (self._pixels, self._flat.values[program.logits]))
        self._executor: Executor | None = None

    @property
    def patch_bytes(self) -> int:
        """Memory of a step for each of its patches: activations, and the rows that products read."""
        return token_bytes(self._flat.items, self._flat.widths, self._kept)

    def run(self, pixels: torch.Tensor, positions: torch.Tensor, ends: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """pixels float32 [P, values of a patch]; positions int64 [P, 2], row and column in their image; ends int [F + 1], 0 and
        the patches up to the end of each image; grid int64 [F, 3], 1, height and width -> float32 [P / merge, hidden].

        Raises RequestOutOfBounds where they do not fit each other, StorageError where memory is short.
        """
        self._check(pixels, positions, ends, grid)
        ends, grid = ends.long(), grid.contiguous()
        out = torch.empty(len(pixels) // self.merge, self.hidden)
        for first, last in _steps(ends.tolist()):
            begin, end = int(ends[first]), int(ends[last])
            own = ends[first:last + 1] - begin
            slots, room = slots_of(own)
            executor = self._fitting(room)
            executor.rows(self._pixels, end - begin).copy_(pixels[begin:end])
            none = torch.zeros(end - begin, dtype=torch.int64)
            executor.run(none, slots, none, none[:0], out[begin // self.merge:], positions[begin:end].T.contiguous(), ends=own,
                         grid=grid[first:last])
        return out

    def profile(self, patches: int) -> list[tuple[str, torch.Tensor]]:
        """Each call's kernel, in order, and its seconds in the steps that follow, of at most so many patches: they are added
        up in the float64 scalars."""
        seconds = self._fitting(patches).profile()
        return [(item.call.kernel, seconds[i]) for i, item in enumerate(self._flat.items)]

    def _fitting(self, slots: int) -> Executor:
        """An executor for so many slots: the one that is there, or a larger one in its place."""
        if self._executor is None or self._executor.tokens < slots:
            self._executor = None  # its memory goes before the new one's comes
            unit = PANEL * self.merge
            room = -(-slots // unit) * unit
            self._executor = Executor(self._flat.items, self._flat.widths, self._weights, self._kept, None, room, self._threads)
        return self._executor

    def _check(self, pixels: torch.Tensor, positions: torch.Tensor, ends: torch.Tensor, grid: torch.Tensor) -> None:
        def refuse(field: str, expected: str, found: object) -> None:
            raise RequestOutOfBounds("the patches of images do not fit", field=field, expected=expected, found=found)

        if pixels.dim() != 2 or pixels.shape[1] != self.pixels:
            refuse("pixels", f"[patches, {self.pixels}]", list(pixels.shape))
        count, images = len(pixels), len(ends) - 1
        if tuple(positions.shape) != (count, 2) or positions.dtype != torch.int64:
            refuse("positions", f"int64 [{count}, 2]", f"{positions.dtype} {list(positions.shape)}")
        if ends.dim() != 1 or images < 1 or int(ends[0]) != 0 or int(ends[-1]) != count:
            refuse("ends", f"from 0 upwards to {count}, the number of patches", ends.tolist())
        if tuple(grid.shape) != (images, 3) or grid.dtype != torch.int64:
            refuse("grid", f"int64 [{images}, 3]", f"{grid.dtype} {list(grid.shape)}")
        sizes = ends.long().diff()
        for image, (size, (frames, height, width)) in enumerate(zip(sizes.tolist(), grid.tolist(), strict=True)):
            if size < 1 or size % self.merge or (frames, height * width) != (1, size) or height < 1:
                refuse(f"image {image}", f"[1, height, width] of {size} patches, a multiple of {self.merge} of them",
                       [frames, height, width])
        if bool((positions < 0).any()) or bool((positions >= grid[:, 1:].repeat_interleave(sizes, 0)).any()):
            refuse("positions", "rows and columns inside each image", [int(positions.min()), int(positions.max())])


def slots_of(ends: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Where the key of each patch goes, int64 [P], and how many slots there are: those of an image begin at a whole panel.

    ends: int64 [F + 1].
    """
    sizes = ends.diff()
    room = (sizes + PANEL - 1) // PANEL * PANEL
    shift = room.cumsum(0) - room - ends[:-1]
    return torch.arange(int(ends[-1])) + shift.repeat_interleave(sizes), int(room.sum())


def _steps(ends: list[int]) -> Iterator[tuple[int, int]]:
    """Neighbouring images that are run together: the first, and the one behind the last."""
    first = 0
    for last in range(1, len(ends)):
        if last + 1 == len(ends) or ends[last + 1] - ends[first] > STEP:
            yield first, last
            first = last
