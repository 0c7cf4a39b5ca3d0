"""What is known of one video besides its pixels: a typed record, checked where it enters."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from glmc.errors import UsageError


@dataclass(frozen=True)
class VideoMetadata:
    """One video's record. `parse` makes it from a mapping; a wrong value raises UsageError naming its key.

    total_num_frames: frames in the file, 0 or more. fps: frames a second, finite and above 0, or None for unknown.
    duration: seconds, finite and 0 or more, or None. width, height: pixels, or None. frames_indices: which frames of the
    file the frames at hand are, or None. do_sample_frames: whether frames are still to be chosen, None where nobody said.
    unknown: what was given and is not used: keys of others, and a rate that cannot be one (0, negative, NaN, infinite).
    """

    total_num_frames: int
    fps: float | None = None
    duration: float | None = None
    width: int | None = None
    height: int | None = None
    video_backend: str | None = None
    frames_indices: tuple[int, ...] | None = None
    do_sample_frames: bool | None = None
    unknown: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        total = _whole("total_num_frames", self.total_num_frames, 0)
        checked: dict[str, Any] = {"total_num_frames": total}
        for name in ("width", "height"):
            if (value := getattr(self, name)) is not None:
                checked[name] = _whole(name, value, 1)
        for name, zero in (("fps", False), ("duration", True)):
            if (value := getattr(self, name)) is not None:
                checked[name] = seconds = _real(name, value)
                if not math.isfinite(seconds) or seconds < 0 or not (seconds or zero):
                    raise UsageError("the video's metadata has a number out of bounds", field=name, found=value,
                                     expected="a finite number, 0 or more" if zero else "a finite number above 0")
        if self.video_backend is not None and not isinstance(self.video_backend, str):
            raise UsageError("the video's metadata has a wrong type", field="video_backend", expected="text",
                             found=self.video_backend)
        if self.do_sample_frames is not None and not isinstance(self.do_sample_frames, bool):
            raise UsageError("the video's metadata has a wrong type", field="do_sample_frames", expected="true or false",
                             found=self.do_sample_frames)
        if self.frames_indices is not None:
            checked["frames_indices"] = _indices(self.frames_indices, total)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @classmethod
    def parse(cls, record: Mapping[str, Any] | VideoMetadata) -> VideoMetadata:
        """From a decoder's or a caller's mapping. Raises UsageError naming the key that is missing or wrong.

        Keys that are not ours are kept in `unknown`. An fps that is a number and yet no rate means an unknown rate, and
        is kept there too, so that a later refusal can name it.
        """
        if isinstance(record, VideoMetadata):
            return record
        if not isinstance(record, Mapping):
            raise UsageError("a video's metadata is not a mapping", field="video_metadata", found=type(record).__name__)
        if record.get("total_num_frames") is None:
            raise UsageError("a video's metadata does not say how many frames it has", field="total_num_frames",
                             found=", ".join(map(str, record)) or "no keys")
        known = {f.name for f in fields(cls)} - {"unknown"}
        taken = {key: value for key, value in record.items() if key in known}
        aside = {key: value for key, value in record.items() if key not in known}
        if (fps := taken.get("fps")) is not None and not 0 < _real("fps", fps) < math.inf:
            aside["fps"] = taken.pop("fps")
        return cls(**taken, unknown=aside)

    @property
    def rate(self) -> float | None:
        """Frames a second: `fps`, else total_num_frames / duration where both are above 0, else None."""
        if self.fps is not None:
            return self.fps
        if self.total_num_frames and self.duration:
            rate = self.total_num_frames / self.duration
            return rate if math.isfinite(rate) else None
        return None

    def known_rate(self) -> float:
        """`rate`. Raises UsageError naming what was given as fps, and the duration, where it is unknown."""
        if (rate := self.rate) is None:
            raise UsageError("the video's rate is unknown, and frames are chosen by it", field="fps",
                             expected="a finite number above 0, or total_num_frames and duration above 0",
                             found=f"fps {self.unknown.get('fps')}, total_num_frames {self.total_num_frames}, "
                                   f"duration {self.duration}",
                             hint="give the video's metadata, or frames that are chosen already")
        return rate

    def for_frames(self, frames: int) -> VideoMetadata:
        """This record for `frames` decoded frames: do_sample_frames is settled, and frames_indices where they are chosen.

        Nobody said whether to choose: chosen are frames that come with indices, or that are not the whole file. Raises
        UsageError where the record and the number of frames cannot both be right.
        """
        whole = frames == self.total_num_frames
        sample = self.do_sample_frames if self.do_sample_frames is not None else whole and self.frames_indices is None
        if sample and not whole:
            raise UsageError("frames cannot be chosen from a part of the video", field="do_sample_frames",
                             expected=f"total_num_frames = {self.total_num_frames} frames", found=frames)
        if sample:
            return replace(self, do_sample_frames=True, frames_indices=None)
        if self.frames_indices is None and not whole:
            raise UsageError("which frames of the video these are is unknown", field="frames_indices",
                             expected=f"{frames} indices, or total_num_frames = {self.total_num_frames} frames", found=None)
        indices = self.frames_indices if self.frames_indices is not None else tuple(range(frames))
        if len(indices) != frames:
            raise UsageError("there are not as many indices as frames", field="frames_indices", expected=frames,
                             found=len(indices))
        return replace(self, do_sample_frames=False, frames_indices=indices)


def one_record_each(frames: Sequence[int],
                    metadata: Sequence[Mapping[str, Any] | VideoMetadata | None] | None) -> list[VideoMetadata]:
    """A settled record (see `for_frames`) for each video, of which frames[i] frames are decoded.

    A video without metadata is taken for a choice that is made already, at an unknown rate. Raises UsageError when there
    are not as many records as videos.
    """
    given = list(metadata) if metadata is not None else [None] * len(frames)
    if len(given) != len(frames):
        raise UsageError("videos and their metadata are not as many", field="video_metadata", expected=len(frames),
                         found=len(given))
    made = []
    for count, record in zip(frames, given, strict=True):
        parsed = VideoMetadata(count, do_sample_frames=False) if record is None else VideoMetadata.parse(record)
        made.append(parsed.for_frames(count))
    return made


def _whole(name: str, value: Any, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < low:
        raise UsageError("the video's metadata has a wrong number", field=name, expected=f"a whole number, {low} or more",
                         found=value)
    return int(value)


def _real(name: str, value: Any) -> float:
    """`value` as a float, perhaps infinite or NaN. Raises UsageError for what is no number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UsageError("the video's metadata has a wrong type", field=name, expected="a number", found=value)
    number: Any = value
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _indices(found: Any, total: int) -> tuple[int, ...]:
    values = found.tolist() if hasattr(found, "tolist") else found
    if not isinstance(values, (list, tuple)):
        raise UsageError("the video's metadata has a wrong type", field="frames_indices",
                         expected="a list of whole numbers", found=type(found).__name__)
    for value in values:
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not whole or not 0 <= int(value) < total:
            raise UsageError("the video has no such frame", field="frames_indices",
                             expected=f"whole numbers from 0 to {total - 1}", found=value)
    return tuple(map(int, values))
