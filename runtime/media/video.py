"""A video to frames: its record first, so that frames can be chosen, then only the chosen ones, resized one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from glmc.errors import MediaError, UsageError
from glmc.runtime.media import container
from glmc.runtime.media.image import check_pixels, image_header, read_image
from glmc.runtime.media.metadata import VideoMetadata
from glmc.runtime.media.patches import resize_frame
from glmc.runtime.media.source import is_encoded


@dataclass(frozen=True)
class Video:
    """A video that is open to be sampled once; made by open_video.

    metadata: its record, settled: do_sample_frames is True or False, and frames_indices stand where it is False. count: the
    frames at hand. height, width: pixels, upright. notes: what reading leaves out, a sentence each.
    """

    metadata: VideoMetadata
    count: int
    height: int
    width: int
    notes: tuple[str, ...]
    _read: Callable[[Sequence[int]], Iterator[torch.Tensor]] = dataclasses.field(repr=False)

    def frames(self, positions: Sequence[int], height: int, width: int) -> torch.Tensor:
        """uint8 [n, height, width, 3], RGB: the frames at `positions`, each resized as soon as it is decoded.

        positions: n >= 1 numbers from 0 to count - 1, ascending, repeats allowed. Raises UsageError for others, MediaError
        for a frame that cannot be decoded.
        """
        chosen = [int(p) for p in positions]
        if not chosen or chosen != sorted(chosen) or chosen[0] < 0 or chosen[-1] >= self.count:
            raise UsageError("these frames cannot be read", field="positions", found=chosen[:16],
                             expected=f"ascending numbers from 0 to {self.count - 1}, at least one")
        made = torch.empty((len(chosen), height, width, 3), dtype=torch.uint8)
        distinct = sorted(set(chosen))
        at = 0
        for number, frame in zip(distinct, self._read(distinct), strict=True):
            small = resize_frame(frame, height, width)
            while at < len(chosen) and chosen[at] == number:
                made[at] = small
                at += 1
        return made


def open_video(source: Any, metadata: Mapping[str, Any] | VideoMetadata | None = None) -> Video:
    """The record of a video, without decoding it (of a file, one frame is).

    source: a path or the bytes of a file in one of container.FORMATS; or frames, as an array (numpy or torch) uint8
    [n, H, W, 3] or a list of what read_image reads, all of one size. metadata: of a file, what is to hold instead of what
    the file says (fps of a file without times, do_sample_frames=False for all frames); of frames, their whole record
    (metadata.VideoMetadata), without which they are taken as chosen already, at an unknown rate. A frame's number is its
    place in the order in which frames are shown; the rate is their mean, whether it varies or not.
    Raises MediaError for what is no video, UsageError for metadata that contradict it or are wrong.
    """
    given = _given(metadata)
    if is_encoded(source):
        if "frames_indices" in given and given.get("do_sample_frames") is not False:
            raise UsageError("which frames of a file are read is chosen here", field="frames_indices",
                             found=given["frames_indices"], hint="give the frames themselves with these indices")
        facts = container.facts(source)
        record = {"total_num_frames": facts.count, "fps": facts.rate, "duration": facts.seconds, "video_backend": "pyav",
                  "do_sample_frames": True}
        return _settled({**record, **given}, facts.count, facts.height, facts.width, facts.notes,
                        lambda wanted: container.frames(source, facts, wanted))
    if isinstance(source, (np.ndarray, torch.Tensor)):
        if source.ndim != 4 or 0 in source.shape[:1]:
            raise MediaError("the array is not a clip", expected="uint8 [n, H, W, 3], n >= 1",
                             found=f"{source.dtype} {list(source.shape)}")
        height, width = read_image(source[0]).shape[:2]
    elif isinstance(source, (list, tuple)) and source:
        headers = [image_header(item) for item in source]
        height, width = headers[0].height, headers[0].width
        for number, header in enumerate(headers):
            if (header.height, header.width) != (height, width):
                raise MediaError("the frames are not of one size", field=f"frame {number}", expected=f"{width} x {height}",
                                 found=f"{header.width} x {header.height}")
    else:
        raise MediaError("this is not a video", found=type(source).__name__,
                         expected="a path, bytes, an array uint8 [n, H, W, 3], or a list of images, at least one")
    check_pixels(width, height, "frames")
    given = {"total_num_frames": len(source), **(given or {"do_sample_frames": False})}
    return _settled(given, len(source), height, width, (), lambda wanted: (read_image(source[i]) for i in wanted))


def _settled(record: dict[str, Any], count: int, height: int, width: int, notes: tuple[str, ...],
             read: Callable[[Sequence[int]], Iterator[torch.Tensor]]) -> Video:
    """A Video whose record agrees with its frames. Raises UsageError where it does not."""
    settled = VideoMetadata.parse(record).for_frames(count)
    for name, size in (("height", height), ("width", width)):
        if getattr(settled, name) not in (None, size):
            raise UsageError("the video's metadata contradict its frames", field=name, expected=size,
                             found=getattr(settled, name))
    return Video(dataclasses.replace(settled, height=height, width=width), count, height, width, notes, read)


def _given(metadata: Mapping[str, Any] | VideoMetadata | None) -> dict[str, Any]:
    """What a caller's metadata say, without the keys that they leave open."""
    if isinstance(metadata, VideoMetadata):
        fields = {f.name: getattr(metadata, f.name) for f in dataclasses.fields(metadata)}
        metadata = {**fields.pop("unknown"), **fields}
    if not isinstance(metadata, (Mapping, type(None))):
        raise UsageError("a video's metadata is not a mapping", field="video_metadata", found=type(metadata).__name__)
    return {key: value for key, value in (metadata or {}).items() if value is not None}
