"""A conversation with images and videos as a prompt: sizes first and refusal, then the text, and the pixels last."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from glmc.errors import MediaError, UsageError
from glmc.runtime.media import admit as admitting
from glmc.runtime.media.image import image_header
from glmc.runtime.media.layout import IMAGE, VIDEO, token_types
from glmc.runtime.media.metadata import VideoMetadata
from glmc.runtime.media.pixels import image_pixels, video_pixels
from glmc.runtime.media.positions import positions
from glmc.runtime.media.settings import Settings
from glmc.runtime.media.video import VideoReader, open_video
from glmc.runtime.prompt import Prompt, Seen
from glmc.runtime.text import Text

_SOURCES = {"image": ("image", "path", "url", "base64"), "video": ("video", "path", "url", "base64")}
"""Kind of a message's item -> the keys under which its file, bytes or pixels may stand, as in transformers."""


@dataclass(frozen=True)
class Wishes:
    """How videos are to be taken. fps: frames a second, None for the checkpoint's own. video_max_tokens: the most for each.
    stamps: whose times a video's text has, see `layout.LIKE`."""

    fps: float | None = None
    video_max_tokens: int | None = None
    stamps: str = "transformers"


@dataclass(frozen=True)
class Asked:
    """Messages without the media in them. images: sources. videos: pairs of a source and its metadata or None."""

    messages: Sequence[Mapping[str, Any]]
    images: list[Any]
    videos: list[tuple[Any, Any]]


def gathered(messages: Sequence[Mapping[str, Any]], images: Sequence[Any] = (), videos: Sequence[Any] = ()) -> Asked:
    """Messages in transformers' format without the media in them, and the media in the order in which they are spoken of.

    An item of a message's content is {"type": "image", "image": SOURCE} or {"type": "video", "video": SOURCE, "metadata":
    MAPPING}; one without a source takes the next of `images` or `videos`. A video is a source, or a pair of it and its
    metadata. Raises UsageError where they are not as many.
    """
    waiting = {"image": iter(images), "video": iter(videos)}
    found: dict[str, list[Any]] = {"image": [], "video": []}
    made: list[Mapping[str, Any]] = []
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(content, (list, tuple)):
            made.append(message)
            continue
        items: list[Any] = []
        for item in content:
            kind = item.get("type") if isinstance(item, Mapping) else None
            if kind in found:
                source = _source(item, kind)
                taken = next(waiting[kind], None) if source is None else source
                if taken is None:
                    raise UsageError(f"a message speaks of more {kind}s than are given", field=f"{kind}s",
                                     found=f"{len(images) if kind == 'image' else len(videos)} given")
                found[kind].append((taken, item.get("metadata")) if kind == "video" and source is not None else taken)
                items.append({"type": kind})
            else:
                items.append(item)
        made.append({**message, "content": items})
    for kind, rest in waiting.items():
        if next(rest, None) is not None:
            raise UsageError(f"more {kind}s are given than the messages speak of", field=f"{kind}s", found=len(found[kind]) + 1)
    return Asked(made, found["image"], pairs(found["video"]))


def pairs(videos: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Each video with its metadata: what is no pair of a source and a mapping has none."""
    def paired(video: Any) -> bool:
        return isinstance(video, tuple) and len(video) == 2 and isinstance(video[1], (Mapping, VideoMetadata, type(None)))

    return [video if paired(video) else (video, None) for video in videos]


def spoken(text: str, images: Sequence[Any], videos: Sequence[Any]) -> list[dict[str, Any]]:
    """One user message: the images, then the videos, then the text."""
    media = [{"type": "image"} for _ in images] + [{"type": "video"} for _ in videos]
    return [{"role": "user", "content": [*media, {"type": "text", "text": text}] if media else text}]


def prompt(settings: Settings, asked: Asked, spelled: str, text: Text, raw: bool, room: int, wishes: Wishes) -> Prompt:
    """The prompt of `spelled`, in which each placeholder stands for the next of the media of its kind.

    raw: whether the tokenizer adds its own marks around it. room: the most tokens that the prompt may have. Headers are read
    and everything is checked before any pixel is decoded. Raises MediaError, UsageError, RequestOutOfBounds.
    """
    headers = [image_header(source) for source in asked.images]
    opened = [open_video(source, metadata) for source, metadata in asked.videos]
    media = admitting.admit(settings, [(h.height, h.width) for h in headers],
                            [(v.metadata, v.height, v.width) for v in opened], fps=wishes.fps, like=wishes.stamps,
                            video_max_tokens=wishes.video_max_tokens, count=lambda part: len(text.ids(part)))
    encode = text.encode if raw else text.ids
    tokens = encode(media.expand(spelled))
    media.check_room(len(tokens) - media.tokens, room)
    types = token_types(tokens, settings.tokens)
    places, _ = positions(types, media.images, [video.grid for video in media.videos], settings.image.merge)
    rows = torch.full((len(tokens),), -1)
    ours = torch.from_numpy(types > 0)
    rows[ours] = torch.arange(int(ours.sum()))
    pixels, grids = _seen(spelled, settings, asked, media, opened)
    notes = [*(f"image {i}: {note}" for i, header in enumerate(headers) for note in header.notes),
             *(f"video {i}: {note}" for i, video in enumerate(opened) for note in video.notes), *media.notes]
    return Prompt(tokens, Seen(pixels, torch.tensor(grids), torch.from_numpy(places), rows), tuple(notes))


def _seen(spelled: str, settings: Settings, asked: Asked, media: admitting.Media, opened: list[VideoReader],
          ) -> tuple[torch.Tensor, list[tuple[int, int, int]]]:
    """Pixels and grids, one row an image or temporal patch, in the order in which the text speaks of them."""
    images = zip(asked.images, media.images, strict=True)
    videos = zip(opened, media.videos, strict=True)
    pixels: list[torch.Tensor] = []
    grids: list[tuple[int, int, int]] = []
    for placeholder in re.findall(f"{re.escape(IMAGE)}|{re.escape(VIDEO)}", spelled):
        if placeholder == IMAGE:
            source, grid = next(images)
            pixels.append(image_pixels(source, grid, settings.image))
        else:
            video, taken = next(videos)
            grid = taken.grid
            pixels.append(video_pixels(video, taken.clip.positions, grid, settings.video))
        grids += [(1, grid.h, grid.w)] * grid.t
    return torch.cat(pixels), grids


def _source(item: Mapping[str, Any], kind: str) -> Any:
    """The file, bytes or pixels of a message's item, None where it has none."""
    key = next((key for key in _SOURCES[kind] if item.get(key) is not None), None)
    if key != "base64":
        return None if key is None else item[key]
    try:
        return base64.b64decode(item[key], validate=True)
    except (binascii.Error, ValueError, TypeError) as fault:
        raise MediaError("this is not base64", field=kind, found=fault) from fault
