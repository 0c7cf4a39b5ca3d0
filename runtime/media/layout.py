"""Images and videos in the text of a conversation: one placeholder becomes as many as the medium has tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from glmc.errors import UsageError
from glmc.runtime.media.resize import Grid
from glmc.runtime.media.sampling import Clip
from glmc.runtime.media.settings import Settings, Tokens

IMAGE, VIDEO = "<|image|>", "<|video|>"
BEGIN_IMAGE, END_IMAGE = "<|begin_of_image|>", "<|end_of_image|>"
LIKE = ("transformers", "vllm")
"""Whose times a video's text has: vLLM's are cut to whole seconds before they are written."""


def stamp(seconds: float, settings: Settings, like: str = "transformers") -> str:
    """A time in a video, 0 or more, as its text has it."""
    if like not in LIKE:
        raise UsageError("no times are written like that", field="stamps", expected=" or ".join(LIKE), found=like)
    whole = int(seconds)
    return str(whole) if settings.stamps == "seconds" else f"{whole if like == 'vllm' else seconds:.1f} seconds"


def stamps(clip: Clip, settings: Settings, like: str = "transformers") -> list[str]:
    """The time of each temporal patch, that of its first frame, as the text after the patch has it."""
    return [stamp(index / clip.rate, settings, like) for index in clip.indices[::settings.video.temporal]]


def image_text(grid: Grid, merge: int) -> str:
    """What stands in place of one `<|image|>`."""
    return IMAGE * grid.tokens(merge)


def video_text(grid: Grid, merge: int, times: Sequence[str]) -> str:
    """What stands in place of one `<|video|>`: its patches as images, each with its time after it.

    Raises UsageError unless there is a time for each temporal patch.
    """
    if len(times) != grid.t:
        raise UsageError("the video has not as many times as temporal patches", field="video", expected=grid.t,
                         found=len(times))
    frame = BEGIN_IMAGE + IMAGE * grid.frame_tokens(merge) + END_IMAGE
    return "".join(frame + time for time in times)


def expand(text: str, images: Sequence[str], videos: Sequence[str]) -> str:
    """`text` with its i-th `<|image|>` replaced by images[i] and its i-th `<|video|>` by videos[i].

    Raises UsageError with both counts unless there are as many placeholders as media of each kind.
    """
    for kind, placeholder, media in (("image", IMAGE, images), ("video", VIDEO, videos)):
        if (found := text.count(placeholder)) != len(media):
            raise UsageError(f"the text does not have one {placeholder} for each {kind}", field=kind,
                             expected=f"{len(media)} placeholders for {len(media)} given", found=f"{found} placeholders",
                             hint="the placeholder itself cannot be part of a text")
    pieces = {IMAGE: iter(images), VIDEO: iter(videos)}
    return re.sub(f"{re.escape(IMAGE)}|{re.escape(VIDEO)}", lambda m: next(pieces[m.group()]), text)


def token_types(ids: Sequence[int] | np.ndarray, tokens: Tokens) -> np.ndarray:
    """int8 [n] for ids [n]: 1 an image's token, 2 a video frame's, which stands after a begin of video, 0 text."""
    found = np.asarray(ids)
    inside = np.cumsum(found == tokens.begin_video) > np.cumsum(found == tokens.end_video)
    return np.where(found == tokens.image, np.where(inside, 2, 1), 0).astype(np.int8)
