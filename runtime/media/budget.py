"""The most tokens that an image or a video can become under a checkpoint's limits, in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

from glmc.runtime.media.layout import stamp
from glmc.runtime.media.resize import ASPECT
from glmc.runtime.media.sampling import most_frames
from glmc.runtime.media.settings import Settings, Sizing


def vision_bound(frames: int, sizing: Sizing) -> int:
    """The most vision tokens of `frames` frames of any height and width: no size gives more, and most bounds are reached.

    A frame's tokens are bounded by the volume where no side is held at one factor, by the aspect where the short side is,
    by 1 token in all cases, and by what growing a small picture up to the least volume rounds up to.
    """
    area, groups = sizing.factor**2, -(-frames // sizing.temporal)
    rounded = sizing.temporal * round(frames / sizing.temporal)
    most = max(1, sizing.longest // (min(rounded, frames) * area))
    if frames * ASPECT * area > sizing.longest:
        most = max(most, math.isqrt(ASPECT * sizing.longest // frames) // sizing.factor)
    if rounded * area < sizing.shortest:
        cells = sizing.shortest / (frames * area)
        aspect = math.sqrt(sizing.shortest / (rounded * area) + 1)
        most = max(most, math.floor(cells + math.sqrt(cells) * (aspect + 1 / aspect) + 1))
    return groups * sizing.expand**2 * most


def largest_video(sizing: Sizing, most: int) -> tuple[int, int]:
    """(vision tokens, frames): the greatest bound over the even numbers of frames up to `most`."""
    return max((vision_bound(n, sizing), n) for n in _even(sizing, most))


def largest_image(sizing: Sizing) -> tuple[int, int]:
    """(height, width) in pixels of the largest image that is not shrunk: as square as the number of its tokens allows.

    A square would miss the most by up to a row of tokens. Under every published limit no image becomes more tokens.
    """
    cells = max(1, sizing.longest // (sizing.temporal * sizing.factor**2))
    while True:
        low = next(side for side in range(math.isqrt(cells), 0, -1) if cells % side == 0)
        if cells <= ASPECT * low**2:
            return low * sizing.factor, cells // low * sizing.factor
        cells -= 1


def stamp_bound(seconds: float, settings: Settings, count: Callable[[str], int] = len) -> int:
    """The most tokens of a time in a video of `seconds`, where equally many digits are equally many tokens.

    count: tokens of a text. Without a tokenizer its characters, which are never fewer.
    """
    nines = [10.0**digits - 1 for digits in range(1, len(str(int(seconds))))]
    return max(count(stamp(t, settings)) for t in (0.0, *nines, seconds))


def largest_text(settings: Settings, seconds: float, fps: float | None = None, count: Callable[[str], int] = len) -> int:
    """The most tokens of a video's whole text, both of its marks included, with times up to `seconds`."""
    each = 2 + stamp_bound(seconds, settings, count)
    sizing, frames = settings.video, _even(settings.video, most_frames(settings, fps))
    return 2 + max(vision_bound(n, sizing) + -(-n // sizing.temporal) * each for n in frames)


def _even(sizing: Sizing, most: int) -> range:
    """The even numbers of frames, from those of one temporal patch up to `most`."""
    first = sizing.temporal + sizing.temporal % 2
    return range(first, max(most, first) + 1, 2)
