"""Small videos made on the spot with PyAV, whose frames tell their number."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np

BY_FORMAT = {
    "mp4": {}, "h264 in mp4": {"codec": "libx264"}, "h264 in matroska": {"form": "matroska", "codec": "libx264"},
    "vp9 in webm": {"form": "webm", "codec": "libvpx-vp9", "reordered": 0}, "avi": {"form": "avi"},
    "mpegts": {"form": "mpegts", "codec": "libx264"}, "mpeg": {"form": "mpeg", "codec": "mpeg2video"},
    "ffv1, odd sides": {"form": "matroska", "codec": "ffv1", "pixels": "yuv444p", "width": 47, "height": 33, "reordered": 0},
    "gif": {"form": "gif", "codec": "gif", "pixels": "rgb8", "reordered": 0},
    "apng": {"form": "apng", "codec": "apng", "pixels": "rgb24", "reordered": 0},
    "alpha": {"form": "mov", "codec": "qtrle", "pixels": "argb", "reordered": 0},
}
"""A name -> the arguments of `clip` that make a file of this kind."""


def picture(number: int, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3] that differs from frame to frame."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 4 + number * 9, y * 5 + number * 3, 0 * x + number * 12], -1).astype(np.uint8)


def clip(frames: int = 20, *, form: str = "mp4", codec: str = "mpeg4", width: int = 64, height: int = 48, fps: int = 25,
         pixels: str = "yuv420p", gop: int = 5, reordered: int = 2, times: list[int] | None = None,
         rotation: int | None = None, file=None) -> bytes:
    """A video's bytes. times: when each frame is shown, in tenths of a second. file: where to write instead, index first."""
    stream = io.BytesIO()
    with av.open(file or stream, "w", format=form, options={"movflags": "faststart"} if file else {}) as container:
        out = container.add_stream(codec, rate=fps)
        out.width, out.height, out.pix_fmt = width, height, pixels
        out.codec_context.gop_size = gop
        if reordered:
            out.codec_context.max_b_frames = reordered
        if times:
            out.codec_context.time_base = Fraction(1, 10)
        if rotation is not None:
            out.set_display_rotation(rotation)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, height, width), format="rgb24")
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 10)
            container.mux(out.encode(frame))
        container.mux(out.encode())
    return file.read_bytes() if file else stream.getvalue()


def sound(cover: bool = False) -> bytes:
    """A file with a second of silence and no video, or with a cover picture at most."""
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        out = container.add_stream("aac", rate=16000)
        if cover:
            art = container.add_stream("mjpeg", rate=1)
            art.width, art.height, art.pix_fmt = 64, 48, "yuvj420p"
            art.disposition = type(art.disposition).attached_pic
            container.mux(art.encode(av.VideoFrame.from_ndarray(picture(0, 48, 64), format="rgb24")))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(out.encode(frame))
        container.mux(out.encode())
    return stream.getvalue()
