"""Keys and values of condition images, which the tokens of a picture see before their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from glmc.program import Step

Mode = Literal["write", "read", "skip"]


class Past:
    """What the step `past` does between a block's halves, by mode: "write" keeps a condition image's keys and values behind
    those of the images before it, which it does not see; "read" puts what is kept before the tokens' own; "skip" does nothing.
    """

    def __init__(self) -> None:
        self._kept: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self._whole: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.mode: Mode = "skip"

    def __call__(self, step: Step, given: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        """given: keys and values [B, tokens, heads, head dim] of layer `step.fixed["layer"]`, of all ranks."""
        keys, values = given
        layer = int(step.fixed["layer"])
        if self.mode == "write":
            self._whole.pop(layer, None)
            self._kept.setdefault(layer, []).append((keys, values))
        if self.mode != "read" or layer not in self._kept:
            return given
        if layer not in self._whole:
            kept = self._kept[layer]
            self._whole[layer] = torch.cat([k for k, _ in kept], 1), torch.cat([v for _, v in kept], 1)
            self._kept[layer] = [self._whole[layer]]
        before = self._whole[layer]
        return torch.cat([before[0], keys], 1), torch.cat([before[1], values], 1)
