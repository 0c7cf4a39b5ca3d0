"""Pictures and clips of one coloured shape, and what is to be said of them: the little world of the model that sees."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": (214, 40, 40), "green": (42, 157, 74), "blue": (38, 84, 214), "yellow": (240, 200, 40)}
SHAPES = ("circle", "square", "triangle")
SIDE, FRAMES, RATE = 84, 8, 4
"""Pixels of a picture's side; frames of a clip, and how many of them a second has."""
QUESTIONS = {"image": "What is this?", "video": "What happens?"}


def picture(colour: str | tuple[int, ...], shape: str, at: tuple[float, float] = (0.5, 0.5), size: float = 0.3,
            ground: int = 235) -> Image.Image:
    """A shape of radius `size` at (x, y), in parts of the side, on a grey ground. colour: one of COLOURS, or its bytes."""
    fill = COLOURS[colour] if isinstance(colour, str) else colour
    made = Image.new("RGB", (SIDE, SIDE), (ground,) * 3)
    x, y, r = at[0] * SIDE, at[1] * SIDE, size * SIDE
    draw = ImageDraw.Draw(made)
    if shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif shape == "square":
        draw.rectangle((x - r, y - r, x + r, y + r), fill=fill)
    else:
        draw.polygon(((x, y - r), (x - r, y + r), (x + r, y + r)), fill=fill)
    return made


def clip(colour: str, shape: str, then: str, at: tuple[float, float] = (0.5, 0.5), size: float = 0.3, ground: int = 235,
         ) -> list[Image.Image]:
    """The frames of a shape whose colour turns into another."""
    first, last = np.array(COLOURS[colour]), np.array(COLOURS[then])
    shares = np.clip(np.linspace(-0.5, 1.5, FRAMES), 0, 1)
    return [picture(tuple(map(int, first + s * (last - first))), shape, at, size, ground) for s in shares]


def answer(colour: str, shape: str, then: str | None = None) -> str:
    """What is to be said of a picture, or of a clip."""
    return f"a {colour} {shape}" + (f" turns {then}" if then else "")


def any_picture(draw: random.Random) -> tuple[Image.Image, str]:
    """A random picture and its answer."""
    colour, shape = draw.choice(list(COLOURS)), draw.choice(SHAPES)
    size = draw.uniform(0.18, 0.38)
    at = draw.uniform(size, 1 - size), draw.uniform(size, 1 - size)
    return picture(colour, shape, at, size, draw.randrange(215, 256)), answer(colour, shape)


def any_clip(draw: random.Random) -> tuple[list[Image.Image], str]:
    """A random clip and its answer."""
    (colour, then), shape = draw.sample(list(COLOURS), 2), draw.choice(SHAPES)
    size = draw.uniform(0.18, 0.38)
    at = draw.uniform(size, 1 - size), draw.uniform(size, 1 - size)
    return clip(colour, shape, then, at, size, draw.randrange(215, 256)), answer(colour, shape, then)


def film(frames: Iterable[Image.Image], path: Path) -> Path:
    """Write frames as an MP4 file of RATE frames a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width = stream.height = SIDE
        stream.bit_rate = 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return path
