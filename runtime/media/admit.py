"""What a request's images and videos become, from sizes and metadata alone: before any pixel is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glmc.errors import RequestOutOfBounds, UsageError
from glmc.runtime.media.layout import expand, image_text, stamps, video_text
from glmc.runtime.media.metadata import VideoMetadata
from glmc.runtime.media.resize import Grid, image_grid, video_grid
from glmc.runtime.media.sampling import Clip, choose
from glmc.runtime.media.settings import Settings
from glmc.runtime.media.thin import text_tokens, thin


@dataclass(frozen=True)
class Video:
    """One video of a request: its frames, their grid and the time after each temporal patch, all from one choice."""

    clip: Clip
    grid: Grid
    times: tuple[str, ...]


@dataclass(frozen=True)
class Media:
    """A request's images and videos, in the order of its text. Made by `admit`.

    image_tokens, video_tokens: what each `<|image|>` and each `<|video|>` becomes, times and marks within a video included.
    notes: what was assumed or left out, in words.
    """

    images: tuple[Grid, ...]
    videos: tuple[Video, ...]
    image_tokens: tuple[int, ...]
    video_tokens: tuple[int, ...]
    merge: int
    notes: tuple[str, ...]

    @property
    def tokens(self) -> int:
        """Tokens of all media."""
        return sum(self.image_tokens) + sum(self.video_tokens)

    def expand(self, text: str) -> str:
        """The text of a conversation with its placeholders made as many as there are tokens. See `layout.expand`."""
        return expand(text, [image_text(grid, self.merge) for grid in self.images],
                      [video_text(v.grid, self.merge, v.times) for v in self.videos])

    def check_room(self, text_tokens: int, room: int) -> None:
        """Raise RequestOutOfBounds unless `text_tokens` tokens, placeholders not counted, and the media are at most `room`."""
        if text_tokens + self.tokens > room:
            raise RequestOutOfBounds(
                "the request is too long with its images and videos", field="max_len", expected=f"at most {room} tokens",
                found=f"{text_tokens} of text, {sum(self.image_tokens)} of {len(self.images)} images, "
                      f"{sum(self.video_tokens)} of {len(self.videos)} videos",
                hint="give smaller images, or --video-max-tokens")


def admit(settings: Settings, images: Sequence[tuple[int, int]] = (),
          videos: Sequence[tuple[VideoMetadata | Mapping[str, Any], int, int]] = (), *, fps: float | None = None,
          video_max_tokens: int | None = None, count: Callable[[str], int] = len, like: str = "transformers") -> Media:
    """What images of (height, width) and videos of (metadata, height, width) become.

    fps: wanted frames a second, None for the checkpoint's. video_max_tokens: the most for the text of each video; beyond it
    fewer frames are kept. count: tokens of a text by the model's tokenizer; without it characters, which are never fewer.
    like: whose times a video has, see `layout.LIKE`. Raises UsageError and RequestOutOfBounds, see `choose`, `smart_resize`
    and `thin`.
    """
    if video_max_tokens is not None and (isinstance(video_max_tokens, bool) or not isinstance(video_max_tokens, int)
                                         or video_max_tokens < 1):
        raise UsageError("this is no number of tokens", field="video_max_tokens", expected="1 or more", found=video_max_tokens)
    merge = settings.video.merge
    grids = tuple(image_grid(height, width, settings.image) for height, width in images)
    made, tokens, notes = [], [], []
    for number, (metadata, height, width) in enumerate(videos):
        clip = choose(VideoMetadata.parse(metadata), settings, fps)
        if video_max_tokens is not None:
            clip = thin(clip, height, width, settings, video_max_tokens, count, like)
        grid = video_grid(len(clip.indices), height, width, settings.video)
        times = stamps(clip, settings, like)
        made.append(Video(clip, grid, tuple(times)))
        tokens.append(text_tokens(grid, times, merge, count))
        notes += [f"video {number}: {note}" for note in clip.notes]
    return Media(grids, tuple(made), tuple(g.tokens(settings.image.merge) for g in grids), tuple(tokens), merge, tuple(notes))
