"""From pixels to grids of tokens: what is generated for an image, how many tokens that is, and the part that is wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from glmc.errors import InternalError, RequestOutOfBounds, UsageError

SIDE = 32
"""Pixels of a generated token's side; a height and a width are multiples of it."""
PATCH = 16
"""Pixels of the side of a patch of the diffusion transformer: a token becomes 2 x 2 of them."""
LONGEST = 1 << 16
"""Pixels of the longest side that is looked at."""


class Grid(NamedTuple):
    """Tokens of an image: h rows of w."""

    h: int
    w: int

    @property
    def tokens(self) -> int:
        return self.h * self.w


class Params(NamedTuple):
    """What is to be generated: so many tokens, of which the image is grid h x w from number `large_start` on."""

    max_new_tokens: int
    large_start: int
    h: int
    w: int


def target_grids(height: int, width: int) -> tuple[Grid, Grid]:
    """The grid of an image of height x width pixels, and that of its preview, which text-to-image makes first.

    Raises UsageError for what is no size or no multiple of SIDE, RequestOutOfBounds for one too large or too long.
    """
    for field, size in (("height", height), ("width", width)):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise UsageError("this is no size of an image", field=field, found=size,
                             expected=f"a whole number of pixels, a multiple of {SIDE}")
        if size > LONGEST:
            raise RequestOutOfBounds("the image is too large", field=field, expected=f"at most {LONGEST}", found=size)
        if size % SIDE:
            raise UsageError("images are made of whole tokens", field=field, found=size,
                             expected=f"a multiple of {SIDE}: the nearest is {max(SIDE, (size + SIDE // 2) // SIDE * SIDE)}")
    large = Grid(height // SIDE, width // SIDE)
    ratio = large.h / large.w
    preview = Grid(int(math.sqrt(ratio) * (SIDE // 2)), int(math.sqrt(1 / ratio) * (SIDE // 2)))
    if not preview.tokens:
        raise RequestOutOfBounds("the image is too long for its width: its preview would have no tokens", field="height, width",
                                 expected="sides of at most 256 to 1", found=f"{height} x {width}")
    return large, preview


def generation_params(grids: Sequence[tuple[int, int, int]], t2i: bool) -> Params:
    """From `image_grid_thw` as the published processor has it, one row a grid: of text-to-image the image first and then what
    is generated before it; of image-to-image sources and then the image. One token more is the end. Raises UsageError.
    """
    if not len(grids):
        raise UsageError("there is no grid to generate", field="grids", expected="at least one row")
    sizes = [Grid(h, w) for _, h, w in grids]
    before = sum(grid.tokens for grid in sizes[1:]) if t2i else 0
    target = sizes[0] if t2i else sizes[-1]
    return Params(before + target.tokens + 1, before, *target)


def extracted(tokens: torch.Tensor, params: Params) -> torch.Tensor:
    """The image's own of all generated tokens, int64 [n] -> int64 [h, w]. Raises InternalError where they are too few."""
    found = tokens[params.large_start:params.large_start + params.h * params.w]
    if len(found) != params.h * params.w:
        raise InternalError("fewer tokens were generated than the image has", expected=params.h * params.w, found=len(found))
    return found.view(params.h, params.w)


def upsampled(tokens: torch.Tensor) -> torch.Tensor:
    """int64 [h, w] -> int64 [2 h, 2 w]: each token four times, one a patch of the diffusion transformer."""
    return tokens.repeat_interleave(SIDE // PATCH, 0).repeat_interleave(SIDE // PATCH, 1)
