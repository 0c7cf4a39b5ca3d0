"""What a model is asked: token ids, and with images or videos among them also pixels and the positions of all tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from glmc.errors import RequestOutOfBounds


@dataclass(frozen=True)
class Placed:
    """New tokens of one row among which some are images or frames.

    positions: int64 [3, n], time, height and width. media: int64 [n], the row of `features` that a token is, -1 for text.
    features: [M, hidden], what the vision tower made, on the model's device. Both are None where images are tokens themselves.
    """

    positions: torch.Tensor
    media: torch.Tensor | None = None
    features: torch.Tensor | None = None

    def part(self, begin: int, end: int) -> Placed:
        """Of tokens `begin` to `end`."""
        return Placed(self.positions[:, begin:end], None if self.media is None else self.media[begin:end], self.features)


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

    def check(self, row: int) -> None:
        """Refuse positions and media that are not of its tokens: the library reads as many as there are tokens.

        Raises RequestOutOfBounds.
        """
        count = len(self.ids)
        for name, wanted in (("positions", [3, count]), ("media", [count])) if self.seen else ():
            tensor = getattr(self.seen, name)
            if list(tensor.shape) != wanted or tensor.dtype != torch.int64:
                raise RequestOutOfBounds("the images of a prompt do not fit its tokens", field=f"prompt[{row}].{name}",
                                         expected=f"int64 {wanted}", found=f"{tensor.dtype} {list(tensor.shape)}")

    @property
    def delta(self) -> int:
        """What the position of a later token is off its slot: an image takes fewer positions than tokens."""
        return 0 if self.seen is None else int(self.seen.positions.max()) + 1 - len(self.ids)
