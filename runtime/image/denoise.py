"""The diffusion transformer of an artefact: one call of it, on one rank or on all that share a picture's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from glmc.program import Step
from glmc.runtime.by_region import ANY
from glmc.runtime.device import Device
from glmc.runtime.image.kv import Past
from glmc.runtime.image.plan import Rows
from glmc.runtime.image.sizes import PATCH
from glmc.runtime.ranks import Alone, Ranks
from glmc.runtime.steps import Move, Steps
from glmc.runtime.transfer import to_device


class Denoiser:
    """The transformer bound to its weights. ranks: those that share every picture's rows; None for one alone."""

    def __init__(self, steps: Steps, dtype: torch.dtype, device: Device, ranks: Ranks | None = None) -> None:
        self.steps, self.dtype, self.device = steps, dtype, device
        self.ranks: Ranks = Alone() if ranks is None else ranks

    def __call__(self, latents: torch.Tensor, text: torch.Tensor, tokens: torch.Tensor, dropped: bool, time: float, past: Past,
                 ) -> torch.Tensor:
        """The noise that is seen in latents [1, C, H, W], float32, whole on every rank.

        text: [1, T, width], T maybe 0. tokens: int64 [h, w], one a patch, or all `dropped`. time: as the scheduler counts it.
        past: what is seen before the picture's own tokens, by its mode. A condition image, in mode "write", is seen whole by
        every rank. Raises RequestOutOfBounds where the rows do not divide among the ranks, RankError.
        """
        ranks = Alone() if past.mode == "write" else self.ranks
        rows = Rows(tokens.shape[0], ranks.size)
        own = rows.cut(tokens.unsqueeze(0), 1, ranks.rank)
        named = {
            "latents": rows.cut(latents.to(self.dtype), 2, ranks.rank), "text": text, "prior": own,
            "dropped": torch.full_like(own, dropped, dtype=torch.bool),
            "timestep": torch.tensor([time], dtype=torch.float32), "size": self._size(tokens, past),
            "crop": torch.zeros(1, 2), "rows": rows.numbers(ranks.rank), "columns": torch.arange(tokens.shape[1])}
        given = {f"input:{name}": to_device(tensor, self.device.torch) for name, tensor in named.items()}
        moves: dict[str, Move] = {"past": past, "all_gather": Gather(ranks, {"T": text.shape[1]})}
        with torch.no_grad():
            return rows.joined(self.steps.run(ANY, given, True, moves), 2, ranks).float()

    def _size(self, tokens: torch.Tensor, past: Past) -> torch.Tensor:
        """float32 [1, 2], height and width in pixels; as published in the model's dtype, but not those of a condition image."""
        size = torch.tensor([[PATCH * tokens.shape[0], PATCH * tokens.shape[1]]], dtype=torch.float32)
        return size if past.mode == "write" else size.to(self.dtype).float()


class Gather:
    """What the step `all_gather` does. letters: how many of the first entries all ranks hold alike, by letter."""

    def __init__(self, ranks: Ranks, letters: Mapping[str, int]) -> None:
        self.ranks, self.letters = ranks, letters

    def __call__(self, step: Step, given: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        """given: one tensor. Raises RankError."""
        (tensor,), dim = given, int(step.fixed["dim"])
        return [self.ranks.all_gather(tensor, dim, self.letters[str(step.fixed["after"])])]
