"""A video that would take more tokens than it may gets fewer frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from glmc.errors import RequestOutOfBounds
from glmc.runtime.media.layout import stamps
from glmc.runtime.media.resize import Grid, video_grid
from glmc.runtime.media.sampling import Clip
from glmc.runtime.media.settings import Settings


def text_tokens(grid: Grid, times: list[str], merge: int, count: Callable[[str], int]) -> int:
    """Tokens of what stands in place of a `<|video|>`: its patches, two marks a patch, and the times."""
    return grid.tokens(merge) + 2 * grid.t + sum(map(count, times))


def thin(clip: Clip, height: int, width: int, settings: Settings, most_tokens: int,
         count: Callable[[str], int] = len, like: str = "transformers") -> Clip:
    """`clip` itself where its text has at most `most_tokens` tokens, else the most of its frames, evenly spread, that do.

    An even number of frames is kept. Of fewer frames each may be larger, so tokens need not fall with every frame: the
    greatest number that fits is found by trial from above. count: tokens of a time's text. Raises RequestOutOfBounds when
    not even two frames fit.
    """
    total, sizing = len(clip.indices), settings.video
    fewest = sizing.temporal + sizing.temporal % 2
    needed = 0
    for keep in (total, *range(total - 1 - (total + 1) % 2, fewest - 1, -2)):
        grid = video_grid(keep, height, width, sizing)
        needed = grid.tokens(sizing.merge) + 3 * grid.t  # a time is a token at least
        if needed > most_tokens:
            continue
        kept = range(total) if keep == total else [i * (total - 1) // (keep - 1) for i in range(keep)]
        thinner = replace(clip, indices=tuple(clip.indices[i] for i in kept), positions=tuple(clip.positions[i] for i in kept))
        needed = text_tokens(grid, stamps(thinner, settings, like), sizing.merge, count)
        if needed <= most_tokens:
            note = f"{keep} of {total} frames are kept: with all of them the video would be more than {most_tokens} tokens"
            return clip if keep == total else replace(thinner, notes=(*clip.notes, note))
    raise RequestOutOfBounds("the video does not fit, however few of its frames are kept", field="video_max_tokens",
                             expected=f"at least {needed}", found=most_tokens)
