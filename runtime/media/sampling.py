"""Which frames of a video the model sees: the published samplers, one for each processor class.

The sums and products are in the published order, since their rounding decides frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from glmc.errors import RequestOutOfBounds, UsageError
from glmc.runtime.media.metadata import VideoMetadata
from glmc.runtime.media.settings import Settings

MOST_4_6V, LONGEST_4_6V = 640, 2400  # frames and seconds; no file changes them
FASTEST = 1000.0
ASSUMED_RATE = 24.0  # transformers' own, for the times of frames that come without a rate


@dataclass(frozen=True)
class Clip:
    """The frames chosen from one video. Its grid, its blocks of text and their stamps all come from this one choice.

    indices: frames of the file, in the order in which they are read; one may stand twice. rate: the file's frames a second.
    notes: what was assumed, in words. positions: where each stands among the frames at hand, which are the file's own unless
    the frames came chosen.
    """

    indices: tuple[int, ...]
    rate: float
    notes: tuple[str, ...] = ()
    positions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.positions:
            object.__setattr__(self, "positions", self.indices)


def choose(metadata: VideoMetadata, settings: Settings, fps: float | None = None) -> Clip:
    """The frames to read, an even number of them, at least 2; or those at hand where they are chosen already.

    fps: wanted frames a second, None for the checkpoint's. Raises UsageError naming what the choice needs and the metadata
    lack, and for an fps where the checkpoint's sampler takes none; RequestOutOfBounds for a video without frames.
    """
    total = metadata.total_num_frames
    if metadata.do_sample_frames is False or (metadata.do_sample_frames is None and metadata.frames_indices is not None):
        given = metadata.frames_indices if metadata.frames_indices is not None else tuple(range(total))
        if not given:
            raise RequestOutOfBounds("the video has no frames", field="frames_indices", expected="at least 1", found=0)
        at_hand = tuple(range(len(given)))
        if (rate := metadata.rate) is not None:
            return Clip(given, rate, positions=at_hand)
        note = (f"the video's rate is not known (fps {metadata.unknown.get('fps')}); the times of its frames are written as "
                f"for {ASSUMED_RATE:g} a second")
        return Clip(given, ASSUMED_RATE, (note,), at_hand)
    if total < 1:
        raise RequestOutOfBounds("the video has no frames", field="total_num_frames", expected="at least 1", found=total)
    rate = metadata.known_rate()
    notes = [] if metadata.fps is not None else [
        f"the video's rate is not known (fps {metadata.unknown.get('fps')}); taken as frames / duration = {rate:.6g} a second"]
    length = metadata.duration or _rounded((total - 1) / rate, rate) + 1
    wanted = _wanted(fps, settings)
    if settings.sampler == "glm4v":
        indices = _glm4v(total, rate, length, wanted, settings.max_duration)
    elif settings.sampler == "glm46v":
        indices = _glm46v(total, rate, length, settings.video.temporal)
    else:
        indices = _glmga(total, rate, length, wanted, settings.max_frames)
    if not indices:
        notes.append(f"the video is shorter than one step of the sampler ({length:.6g} s); its first frame is taken")
    kept = list(dict.fromkeys(indices or [0]))
    return Clip(tuple(kept + kept[-1:] * (len(kept) % 2)), rate, tuple(notes))


def most_frames(settings: Settings, fps: float | None = None) -> int:
    """The most frames that `choose` chooses from any file, an even number."""
    wanted = _wanted(fps, settings)
    most = {"glm4v": max(int(settings.max_duration * wanted), 1), "glm46v": MOST_4_6V, "glmga": settings.max_frames}
    return most[settings.sampler] + most[settings.sampler] % 2


def _wanted(fps: float | None, settings: Settings) -> float:
    if fps is None:
        return settings.fps
    if settings.sampler == "glm46v":
        raise UsageError("this checkpoint chooses the frames a second by the video's length", field="fps",
                         expected="no fps", found=fps)
    if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps <= FASTEST:
        raise UsageError("these are no frames a second", field="fps", expected=f"above 0, at most {FASTEST:g}", found=fps)
    return fps


def _rounded(seconds: float, rate: float) -> int:
    if not math.isfinite(seconds):
        raise UsageError("the video's rate is absurd", field="fps", found=rate)
    return round(seconds)


def _glm4v(total: int, rate: float, length: float, wanted: float, longest: float) -> list[int]:
    """Every 1/wanted seconds; of a long video as many frames, spread over its length."""
    last = total - 1
    if length <= longest:
        return [min(last, math.ceil(i * rate / wanted)) for i in range(max(math.floor(length * wanted), 1))]
    many = int(longest * wanted)
    if many >= total:
        return list(range(total))
    return [min(last, math.ceil(t * rate)) for t in _spread(0, length, many)]


def _glm46v(total: int, rate: float, length: float, temporal: int) -> list[int]:
    """3, 1 or 0.5 temporal patches a second by the length, at most 640 frames."""
    effective = min(length, LONGEST_4_6V)
    wanted = 3 if effective <= 30 else 1 if effective <= 300 else 0.5
    many = min(int(effective * wanted * temporal), MOST_4_6V)
    if total < many:
        return [math.floor(i) for i in _spread(0, total - 1, many)]
    return _filled(_walk(total, rate, 1 / (temporal * wanted), int(length), many), total, many)


def _glmga(total: int, rate: float, length: float, wanted: float, most: int) -> list[int]:
    """Every 1/wanted seconds; the walk ends a step early, so that mostly the spreading decides."""
    many, step = min(int(length * wanted), most), 1 / wanted
    if total < many:
        return [math.floor(i * total / many) for i in range(many)]
    return _filled(_walk(total, rate, step, length - step, many), total, many)


def _walk(total: int, rate: float, step: float, end: float, enough: int) -> list[int]:
    """Frames whose time reaches a cursor, which then moves by `step`, up to `end`; at most one more than `enough`."""
    picked: list[int] = []
    cursor, period, frame = 0.0, 1 / rate, 0
    while True:
        frame = max(frame, int(min(total, cursor * rate * (1 - 1e-12))) - 2)  # not beyond the first that reaches the cursor
        while frame < total and frame * period < cursor:
            frame += 1
        if frame >= total:
            return picked
        picked.append(frame)
        cursor += step
        if cursor >= end or len(picked) > enough:
            return picked
        frame += 1


def _filled(picked: list[int], total: int, many: int) -> list[int]:
    """Exactly `many` frames: the walk's where it has as many, else spread evenly over what it covers, or over the file."""
    if len(picked) == many:
        return picked
    first, last = (picked[0], picked[-1]) if len(picked) < many else (0, total - 1)
    return [math.floor(i) for i in _spread(first, last, many)]


def _spread(first: float, last: float, many: int) -> list[float]:
    """`many` even steps from first to last, both included: numpy's linspace, to the bit."""
    if many < 2:
        return [float(first)] * many
    step = (last - first) / (many - 1)
    return [i * step + first for i in range(many - 1)] + [float(last)]
