"""How ranks denoise a picture together: all share its rows, or two halves of them take guidance's two calls."""

from __future__ import annotations

from collections.abc import Callable

import torch

from glmc.errors import RequestOutOfBounds
from glmc.runtime.image.plan import Rows
from glmc.runtime.ranks import Alone, Ranks


class Sharing:
    """rows: the ranks that share the rows of one call. guidance: the two that take a call each, with the prompt and without it;
    where it is alone, every rank makes both. Together they are the world."""

    def __init__(self, world: Ranks, rows: Ranks | None = None, guidance: Ranks | None = None) -> None:
        """rows: None for the whole world. guidance: None for none."""
        self.world, self.rows, self.guidance = world, rows or world, guidance or Alone()

    def check(self, rows: int, guidance: float) -> None:
        """Refuse a picture that cannot be shared so. Raises RequestOutOfBounds."""
        Rows(rows, self.rows.size)
        if self.guidance.size > 1 and guidance == 1:
            raise RequestOutOfBounds("without guidance there are no two calls to share", field="guidance", found=guidance,
                                     expected="more than 1", hint="leave out --cfg-parallel")

    def begin(self, stage: str, latents: torch.Tensor) -> None:
        """Begin a step, for which all ranks hold the same latents. Raises RankError."""
        self.world.same(stage, latents.cpu())
        for group in (self.rows, self.guidance):
            if group is not self.world:
                group.enter(stage)

    def calls(self, call: Callable[[int], torch.Tensor], count: int) -> list[torch.Tensor]:
        """The results, [1, C, H, W], of call(0) to call(count - 1), each made by those whose it is. Raises RankError."""
        if self.guidance.size == 1:
            return [call(number) for number in range(count)]
        return list(self.guidance.all_gather(call(self.guidance.rank), 0).split(1))
