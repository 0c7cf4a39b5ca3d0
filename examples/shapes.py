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
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SIDE, FRAMES, RATE = 84, 8, 4
"""Pixels of a picture's side; frames of a clip, and how many of them a second has."""
QUESTIONS = {"image": "What is this?", "video": "What happens?"}


def picture(colour: str, shape: str, at: tuple[float, float] = (0.5, 0.5), size: float = 0.3, ground: int = 235) -> Image.Image:
    """A shape of radius `size` at (x, y), in parts of the side, on a grey ground."""
    made = Image.new("RGB", (SIDE, SIDE), (ground,) * 3)
    x, y, r = at[0] * SIDE, at[1] * SIDE, size * SIDE
    draw = ImageDraw.Draw(made)
    if shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=COLOURS[colour])
    elif shape == "square":
        draw.rectangle((x - r, y - r, x + r, y + r), fill=COLOURS[colour])
    else:
        draw.polygon(((x, y - r), (x - r, y + r), (x + r, y + r)), fill=COLOURS[colour])
    return made


def clip(colour: str, shape: str, way: str, size: float = 0.22, ground: int = 235) -> list[Image.Image]:
    """The frames of a shape that crosses the picture: it goes left, right, up or down."""
    dx, dy = WAYS[way]
    steps = np.linspace(-0.28, 0.28, FRAMES)
    return [picture(colour, shape, (0.5 + dx * s, 0.5 + dy * s), size, ground) for s in steps]


def answer(colour: str, shape: str, way: str | None = None) -> str:
    """What is to be said of a picture, or of a clip."""
    return f"a {colour} {shape}" + (f" moves {way}" if way else "")


def any_picture(draw: random.Random) -> tuple[Image.Image, str]:
    """A random picture and its answer."""
    colour, shape = draw.choice(list(COLOURS)), draw.choice(SHAPES)
    size = draw.uniform(0.18, 0.38)
    at = draw.uniform(size, 1 - size), draw.uniform(size, 1 - size)
    return picture(colour, shape, at, size, draw.randrange(215, 256)), answer(colour, shape)


def any_clip(draw: random.Random) -> tuple[list[Image.Image], str]:
    """A random clip and its answer."""
    colour, shape, way = draw.choice(list(COLOURS)), draw.choice(SHAPES), draw.choice(list(WAYS))
    return clip(colour, shape, way, draw.uniform(0.16, 0.26), draw.randrange(215, 256)), answer(colour, shape, way)


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
