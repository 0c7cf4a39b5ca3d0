"""What a model is asked: token ids, and with images or videos among them also pixels and the positions of all tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Placed:
    """New tokens of one row among which some are images or frames.

    positions: int64 [3, n], time, height and width. media: int64 [n], the row of `features` that a token is, -1 for text.
    features: [M, hidden], what the vision tower made, on the model's device.
    """

    positions: torch.Tensor
    media: torch.Tensor
    features: torch.Tensor


@dataclass(frozen=True)
class Seen:
    """The images and frames of a prompt, in the order in which their tokens stand.

    pixels: float32 [P, values of a patch], in the published block order. grid: int64 [F, 3], one row an image or frame: 1,
    height and width in patches. positions, media: see `Placed`.
    """

    pixels: torch.Tensor
    grid: torch.Tensor
    positions: torch.Tensor
    media: torch.Tensor


@dataclass(frozen=True)
class Prompt:
    """Token ids of one row; `seen` where there are images or videos among them. notes: what was assumed or left out."""

    ids: Sequence[int]
    seen: Seen | None = None
    notes: tuple[str, ...] = ()

    @property
    def delta(self) -> int:
        """What the position of a later token is off its slot: an image takes fewer positions than tokens."""
        return 0 if self.seen is None else int(self.seen.positions.max()) + 1 - len(self.ids)
