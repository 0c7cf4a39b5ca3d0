"""The size that an image or a video gets before it is cut into patches, to the pixel as the published processors have it."""

from __future__ import annotations

import math
from typing import NamedTuple

from glmc.errors import RequestOutOfBounds
from glmc.runtime.media.settings import Sizing

ASPECT = 200
"""The longest side is at most this many times the shortest."""


class Grid(NamedTuple):
    """Patches of one medium: t pairs of frames (1 for an image), h rows, w columns."""

    t: int
    h: int
    w: int

    def tokens(self, merge: int) -> int:
        """Tokens of the text model that stand for it."""
        return self.t * self.frame_tokens(merge)

    def frame_tokens(self, merge: int) -> int:
        """Tokens of one temporal patch."""
        return self.h * self.w // merge**2


def smart_resize(frames: int, height: int, width: int, sizing: Sizing) -> tuple[int, int]:
    """(height, width) in pixels, multiples of sizing.factor, for `frames` frames of height x width pixels.

    The volume of all frames comes to lie between sizing.shortest and sizing.longest, except that no side falls below one
    factor. Rounding is half to even. Raises RequestOutOfBounds for no pixels, too few frames and too long a shape.
    """
    if height < 1 or width < 1:
        raise RequestOutOfBounds("the picture has no pixels", expected="at least 1 x 1", found=f"{height} x {width}")
    if frames < sizing.temporal:
        raise RequestOutOfBounds("the video has too few frames for one temporal patch", expected=sizing.temporal, found=frames,
                                 hint="one still picture is an image; or give its frame twice")
    factor = sizing.factor
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    if max(height, width) / min(height, width) > ASPECT:
        raise RequestOutOfBounds("the picture is too long for its width", expected=f"sides of at most {ASPECT} to 1",
                                 found=f"{height} x {width}")
    tall, wide = round(height / factor) * factor, round(width / factor) * factor
    volume = round(frames / sizing.temporal) * sizing.temporal * tall * wide
    if volume > sizing.longest:
        shrink = math.sqrt((frames * height * width) / sizing.longest)
        return (max(factor, math.floor(height / shrink / factor) * factor),
                max(factor, math.floor(width / shrink / factor) * factor))
    if volume < sizing.shortest:
        grow = math.sqrt(sizing.shortest / (frames * height * width))
        return math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return tall, wide


def image_grid(height: int, width: int, sizing: Sizing) -> Grid:
    """The patches of an image of height x width pixels. Raises RequestOutOfBounds."""
    tall, wide = smart_resize(sizing.temporal, height, width, sizing)
    return Grid(1, tall // sizing.patch, wide // sizing.patch)


def video_grid(frames: int, height: int, width: int, sizing: Sizing) -> Grid:
    """The patches of `frames` chosen frames; the last one is repeated up to whole temporal patches. See smart_resize."""
    tall, wide = smart_resize(frames, height, width, sizing)
    return Grid(-(-frames // sizing.temporal), tall // sizing.patch, wide // sizing.patch)
