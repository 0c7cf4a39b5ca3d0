"""What an artefact and the published model of its checkpoint are both asked: random tokens, and random images among them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from glmc.runtime.media.positions import positions
from glmc.runtime.prompt import Prompt, Seen
from glmc.runtime.session import Model
from glmc.runtime.vision import Vision

PROMPT, MORE = 13, 3
_GRIDS = ((2, 3), (3, 1))
"""Height and width of the images, in tokens; unequal, so that the three axes differ."""
_SIZES = [high * wide for high, wide in _GRIDS]
_AT = (5, 9)
"""Before which token of the text each of them stands."""


@dataclass(frozen=True)
class Trial:
    """tokens: int64 [1, n]. pieces: from and up to which token they are run at once; the first is the prompt. seen: its
    images."""

    tokens: torch.Tensor
    pieces: list[tuple[int, int]]
    seen: Seen | None
    notes: list[str]

    @property
    def prompt(self) -> Prompt:
        return Prompt(self.tokens[0, :self.pieces[0][1]].tolist(), self.seen)

    def media(self, start: int) -> dict[str, torch.Tensor]:
        """The images of the piece from token `start` on, as the published model takes them; the prompt has them all."""
        if self.seen is None or start:
            return {}
        return {"pixel_values": self.seen.pixels, "image_grid_thw": self.seen.grid,
                "mm_token_type_ids": (self.seen.media >= 0).int().unsqueeze(0)}


def trial(model: Model, dtype: torch.dtype, seed: int) -> Trial:
    """A prompt of PROMPT tokens and MORE tokens one by one, for a model that computes in `dtype`.

    With an indexer there are so many more that it has to choose; with a vision tower also two images, where rows of the
    artefact hold them.
    """
    few = model.dims.get("index_topk", 0)  # an indexer's choice begins behind so many slots
    seeing, notes = model.media is not None, []
    if model.vision is not None and model.media is None:
        notes.append("no images: the model makes them tokens before its text model, and only that is compared")
    if seeing and model.max_len < PROMPT + sum(_SIZES) + MORE:
        seeing = False
        notes.append(f"no images: the artefact's rows hold {model.max_len} tokens")
    first = max(1, min(PROMPT + few + sum(_SIZES) * seeing, model.max_len - MORE))
    count = min(model.max_len, first + MORE)
    if count <= few:
        notes.append(f"the indexer chooses nothing: it looks at {few} slots, and the artefact's rows hold {model.max_len}")
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, model.dims["vocabulary"], (1, count), generator=draw)
    pieces = [(0, first), *((at, at + 1) for at in range(first, count))]
    seen = None
    if seeing and model.vision and model.media:
        image = model.media.tokens.image
        tokens[tokens == image] = (image + 1) % model.dims["vocabulary"]
        seen = _images(model.vision, first - sum(_SIZES), dtype, draw)
        tokens[0, :first][seen.media >= 0] = image
    return Trial(tokens, pieces, seen, notes)


def _images(vision: Vision, text: int, dtype: torch.dtype, draw: torch.Generator) -> Seen:
    """Two images of random pixels among so many tokens of text. The pixels are numbers that `dtype` has."""
    types = np.insert(np.zeros(text, np.int64), np.repeat(_AT, _SIZES), 1)
    placed = torch.from_numpy(types) > 0
    grid = torch.tensor([[1, high * vision.merge, wide * vision.merge] for high, wide in _GRIDS])
    pixels = torch.randn(int(grid.prod(1).sum()), vision.width, generator=draw).to(dtype).float()
    return Seen(pixels, grid, torch.from_numpy(positions(types, grid.tolist(), [], vision.merge)[0]),
                torch.where(placed, placed.cumsum(0) - 1, -1))
