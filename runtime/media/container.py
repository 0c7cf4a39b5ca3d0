"""A video file through PyAV: its frames counted from its packets, then only those decoded that are asked for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from glmc.errors import MediaError
from glmc.runtime.media.image import MAX_PIXELS, check_pixels
from glmc.runtime.media.source import library, opened, said

MAX_FRAMES = 1 << 20
"""The most frames that a video may have: 11 hours at 25 a second."""
MAX_BYTES = 1 << 40
FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts", "mpeg", "ogg", "flv", "asf", "mxf", "ivf", "nut", "gif",
           "apng", "h264", "hevc", "obu")
"""What is tried, by FFmpeg's names. Not tried: playlists, which name other files, single images and devices."""

_BY_TIME = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")  # their times and key frames can be trusted, so that one may seek
_NEAR = 16  # frames: nearer than this, decoding on is cheaper than seeking


@dataclass(frozen=True)
class Facts:
    """What the packets of a file say. count: frames. rate: a second, the mean; seconds: both None where no times are given.

    height, width: pixels, upright. turned: how often a frame is turned by 90 degrees counter-clockwise to stand upright.
    times: when each frame is shown, ascending, in the stream's unit, or None where frames are found by counting. keys: the
    place in `times` and the decoding time of each frame at which decoding may start. cut: where in the file the broken
    packets at its end stand, which are not counted. notes: a sentence for what is left out.
    """

    count: int
    rate: float | None
    seconds: float | None
    height: int
    width: int
    turned: int
    times: tuple[int, ...] | None
    keys: tuple[tuple[int, int], ...]
    cut: frozenset[int]
    notes: tuple[str, ...]


def facts(source: Any) -> Facts:
    """Facts of a video file, by path or as bytes. Reads every packet and decodes one frame.

    Raises MediaError for what is no video, has no frame or too large ones; UsageError without PyAV; StorageError.
    """
    with _stream(source) as (container, stream):
        packets, cut, notes = _packets(container, stream, source)
    with _stream(source) as (container, stream):
        first = next(_decoded(container, stream, source, cut), None)
        if first is None:
            raise MediaError("no frame of the video can be decoded", file=said(source), found=f"{len(packets)} packets")
        check_pixels(first.width, first.height, said(source))
        quarter, rest = divmod(round(first.rotation), 90)
        if rest:
            notes.append(f"it is turned by {first.rotation} degrees, which is ignored: only quarters are done")
        turned = 0 if rest else quarter % 4
        shape = stream.codec_context.sample_aspect_ratio
        if shape and shape != 1:
            notes.append(f"its pixels are not square but {shape}, and are taken as they are stored")
        if any(c.is_alpha for c in first.format.components):
            notes.append("its frames have an alpha channel, which is dropped and not blended")
        by_time = container.format.name in _BY_TIME
        rate, seconds = _rate(packets, stream.time_base)
    sides = (first.width, first.height) if turned % 2 else (first.height, first.width)
    times = sorted(p[0] for p in packets if p[0] is not None)
    keys: list[tuple[int, int]] = []
    if by_time := by_time and len(set(times)) == len(packets):
        keys = sorted((bisect_right(times, shown) - 1, decoded) for shown, decoded, _, key in packets
                      if key and decoded is not None)
    return Facts(len(packets), rate, seconds, *sides, turned, tuple(times) if by_time else None, tuple(keys), cut,
                 tuple(notes))


def frames(source: Any, known: Facts, wanted: Sequence[int]) -> Iterator[torch.Tensor]:
    """uint8 [H, W, 3], RGB, upright, of each frame number in `wanted`, ascending without repeats; one is held at a time.

    Raises MediaError that names the frame which cannot be decoded.
    """
    with _stream(source) as (container, stream):
        found = (_by_time(container, stream, source, known, wanted) if known.times
                 else enumerate(_decoded(container, stream, source, known.cut)))
        number = -1
        for want in wanted:
            while number < want:
                number, frame = next(found, (known.count, None))
            if number > want or frame is None:
                raise MediaError("a frame of the video cannot be decoded", file=said(source), field=f"frame {want}",
                                 hint="the file is damaged: copy it again, or mend it with ffmpeg")
            check_pixels(frame.width, frame.height, said(source))
            pixels = np.rot90(frame.to_ndarray(format="rgb24"), known.turned)
            yield torch.from_numpy(np.ascontiguousarray(pixels))


def _by_time(container: Any, stream: Any, source: Any, known: Facts, wanted: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """(number, frame), ascending, with at least those wanted that can be decoded; jumps to a key frame where that is far."""
    place = {time: number for number, time in enumerate(known.times or ())}
    starts = [number for number, _ in known.keys]
    decoder, at = _decoded(container, stream, source, known.cut), -1
    for want in wanted:
        key = bisect_right(starts, want) - 1
        if key >= 0 and starts[key] > at + _NEAR:
            container.seek(known.keys[key][1], stream=stream)
            decoder = _decoded(container, stream, source, known.cut)
        while at < want:
            if (frame := next(decoder, None)) is None:
                return
            if (number := place.get(frame.pts, -1)) > at:
                at = number
                yield number, frame


def _decoded(container: Any, stream: Any, source: Any, cut: frozenset[int]) -> Iterator[Any]:
    """Frames as they are shown, from where the container stands to the first packet that stands in `cut`."""
    av = library("av", "video")
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt and packet.pos in cut:
                yield from stream.codec_context.decode(None)
                return
            yield from packet.decode()
    except (av.FFmpegError, ValueError) as fault:
        raise MediaError("the video cannot be decoded", file=said(source), found=fault,
                         hint="the file is damaged: copy it again, or mend it with ffmpeg") from fault


@contextmanager
def _stream(source: Any) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream. FFmpeg reads through our own stream, so that it opens nothing else."""
    av = library("av", "video")
    options = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "none", "max_pixels": str(MAX_PIXELS)}
    with opened(source, MAX_BYTES) as file:
        try:
            container = av.open(file, options=options)
        except (av.FFmpegError, ValueError) as fault:
            raise MediaError("this is not a video, or its header is broken", file=said(source), found=fault,
                             expected="one of " + ", ".join(name.split(",")[0] for name in FORMATS),
                             hint="a single picture is an image") from fault
        with container:
            streams = [s for s in container.streams.video if not s.disposition & type(s.disposition).attached_pic]
            if not streams:
                raise MediaError("there is no video in the file", file=said(source),
                                 found=", ".join(s.type for s in container.streams) or "no streams")
            if streams[0].codec_context is None:
                raise MediaError("there is no decoder for the video", file=said(source))
            if not (streams[0].width and streams[0].height):
                raise MediaError("the size of the video's frames cannot be read", file=said(source),
                                 expected=f"at most {MAX_PIXELS} pixels, and a header that is whole")
            check_pixels(streams[0].width, streams[0].height, said(source))
            # Frames may be larger than the header says: the decoder is told too, before it takes memory.
            streams[0].codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            yield container, streams[0]


def _packets(container: Any, stream: Any,
             source: Any) -> tuple[list[tuple[Any, Any, int, bool]], frozenset[int], list[str]]:
    """(shown, decoded, duration, whether a key) of each packet that makes a frame; where broken ones stand; notes.

    Raises MediaError where no packet is left.
    """
    av = library("av", "video")
    found, broken, places, notes = [], [], [], []
    try:
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                found.append((packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe))
                broken.append(packet.is_corrupt)
                places.append(packet.pos)
            if len(found) > MAX_FRAMES:
                raise MediaError("the video has too many frames", file=said(source), expected=f"at most {MAX_FRAMES}")
    except (av.FFmpegError, ValueError) as fault:
        notes.append(f"reading ends after {len(found)} packets: {fault}")
    first = next((i for i, packet in enumerate(found) if packet[3]), 0)
    last = len(found)
    while last and broken[last - 1]:
        last -= 1
    if first:
        notes.append(f"{first} packets before the first key frame are not counted")
    if last < len(found):
        notes.append(f"{len(found) - last} broken packets at the end are not counted")
    if 0 < stream.frames != last - first:
        notes.append(f"the file promises {stream.frames} frames and has {last - first}")
    if last <= first:
        raise MediaError("the video has no frames", file=said(source))
    if any(broken[first:last]):
        notes.append(f"{sum(broken[first:last])} packets are marked as damaged")
    return found[first:last], frozenset(places[last:]), notes


def _rate(packets: list[tuple[Any, Any, int, bool]], unit: Fraction) -> tuple[float | None, float | None]:
    """Frames a second and seconds, from first to last, or None and None where the packets do not say."""
    if any(shown is None for shown, *_ in packets):
        return None, None
    begin = min(shown for shown, *_ in packets)
    last, said_duration = max((shown, duration) for shown, _, duration, _ in packets)
    duration = Fraction(said_duration)
    if not duration and len(packets) > 1:  # the last frame is shown as long as the others in the mean
        duration = Fraction(last - begin, len(packets) - 1)
    seconds = (last + duration - begin) * unit
    return (float(len(packets) / seconds), float(seconds)) if seconds > 0 else (None, None)
