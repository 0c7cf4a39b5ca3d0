"""The grid of a condition image, to the token as the published processor has it."""

from __future__ import annotations

import math

from glmc.errors import RequestOutOfBounds
from glmc.runtime.media.resize import Grid
from glmc.runtime.media.settings import Sizing

ASPECT = 4
"""The longest side is at most this many times the shortest."""


def smart_resize(height: int, width: int, sizing: Sizing) -> tuple[int, int]:
    """(height, width) in pixels of what the vision tower sees of an image: about half of each side, multiples of
    sizing.factor, after the shortest side is made at least the root of sizing.shortest and the longest at most that of
    sizing.longest. Rounding is half to even. Raises RequestOutOfBounds.
    """
    factor = sizing.factor
    if height < factor or width < factor:
        raise RequestOutOfBounds("the condition image is too small", expected=f"at least {factor} x {factor}",
                                 found=f"{height} x {width}")
    shorter, longer = min(height, width), max(height, width)
    if longer / shorter > ASPECT:
        raise RequestOutOfBounds("the condition image is too long for its width", expected=f"sides of at most {ASPECT} to 1",
                                 found=f"{height} x {width}")
    least, most = (round(math.sqrt(limit)) for limit in (sizing.shortest, sizing.longest))
    scale = max(1.0, least / shorter)
    if longer * scale > most:
        scale = most / longer
    tall, wide = (max(factor, round(side // 2 * scale / factor) * factor) for side in (height, width))
    if max(tall, wide) > most:
        shrink = max(tall, wide) / most
        tall, wide = (max(factor, math.floor(side / shrink / factor) * factor) for side in (tall, wide))
    return tall, wide


def condition_grid(height: int, width: int, sizing: Sizing) -> Grid:
    """The patches of an image of height x width pixels, each of them a token. Raises RequestOutOfBounds."""
    tall, wide = smart_resize(height, width, sizing)
    return Grid(1, tall // sizing.patch, wide // sizing.patch)
