"""An image to RGB bytes: what its header says first, so that refusal comes before work, then the pixels."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from glmc.errors import MediaError
from glmc.runtime.media.source import is_encoded, library, opened, said

MAX_PIXELS = 89_000_000
"""The most pixels that an image, or a frame of a video, may have. Read from the header, before any are decoded."""
MAX_BYTES = 8 * MAX_PIXELS
"""The most bytes that an image's file may have: no format needs more for MAX_PIXELS."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""What is tried, by Pillow's names. Not tried: EPS, which runs another program, and formats without a size in the header."""

_ORIENTATION = 0x0112  # EXIF: how the stored picture is to be turned
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
_NO_RANGE = ("I", "F")
_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")
_STRIP = 1 << 20  # pixels that are converted at a time
# What Pillow raises for a file that is broken; SyntaxError is its own word for "not this format".
_BROKEN = (OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError, OverflowError, struct.error)


@dataclass(frozen=True)
class ImageHeader:
    """What is known of an image before its pixels are decoded. height, width: pixels, upright.

    format, mode: Pillow's names, "" for an array. notes: what reading leaves out, a sentence each.
    """

    height: int
    width: int
    format: str
    mode: str
    notes: tuple[str, ...] = ()


def image_header(source: Any) -> ImageHeader:
    """The header of an image; `source` as for read_image, whose result has this height and width. No pixels are decoded.

    Raises as read_image does, but for pixels that are missing or broken.
    """
    if not (is_encoded(source) or _is_pil(source)):
        height, width = _array(source).shape[:2]
        return ImageHeader(height, width, "", "")
    with _picture(source) as image:
        orientation, notes = _orientation(image)
        width, height = image.size if orientation < 5 else image.size[::-1]
        return ImageHeader(height, width, image.format or "", image.mode, (*notes, *_left_out(image)))


def read_image(source: Any) -> torch.Tensor:
    """uint8 [H, W, 3], RGB, upright.

    source: a path or the bytes of a file in one of FORMATS, a PIL image, or an array (numpy or torch, on any device) that
    is uint8 [H, W, 3] already; an array is not copied where it need not be. The pixels are those of transformers'
    load_image: turned as EXIF says, the first of several frames, alpha dropped and not blended, CMYK by Pillow's formula;
    except that 16-bit grey keeps its high byte, as Pillow does with 16-bit colour, and is not clipped at 255.
    Takes 7 bytes a pixel besides what the format's decoder needs. Raises MediaError, UsageError without Pillow,
    StorageError when the system cannot read.
    """
    if not (is_encoded(source) or _is_pil(source)):
        return _array(source)
    with _picture(source) as image:
        orientation, _ = _orientation(image)
        try:
            image.load()
        except _BROKEN as fault:
            raise MediaError("the image is broken", file=said(source), found=fault,
                             hint="it may have been cut off: copy it again") from fault
        width, height = image.size
        upright = torch.empty((height, width, 3) if orientation < 5 else (width, height, 3), dtype=torch.uint8)
        stored = _stored_view(upright.numpy(), orientation)
        rows = max(1, _STRIP // width)
        for top in range(0, height, rows):  # so that the whole is never held a third time
            strip = image.crop((0, top, width, min(top + rows, height)))
            stored[top:top + rows] = _rgb(strip, said(source))
        return upright


def _is_pil(source: Any) -> bool:
    return hasattr(source, "getbands") and hasattr(source, "convert")


def _array(source: Any) -> torch.Tensor:
    """`source` as uint8 [H, W, 3] on the CPU, or MediaError."""
    if not isinstance(source, (np.ndarray, torch.Tensor)):
        raise MediaError("this is not an image", found=type(source).__name__,
                         expected="a path, bytes, a PIL image, or an array uint8 [H, W, 3]")
    wanted = np.uint8 if isinstance(source, np.ndarray) else torch.uint8
    if source.dtype != wanted or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
        raise MediaError("the array is not an RGB image", expected="uint8 [H, W, 3], RGB, 0 to 255",
                         found=f"{source.dtype} {list(source.shape)}",
                         hint="channels come last; grey is repeated three times, alpha removed, floats scaled by the caller")
    check_pixels(source.shape[1], source.shape[0], "array")
    if isinstance(source, np.ndarray):
        # A view that is read-only or runs backwards is copied: torch has neither.
        source = torch.from_numpy(np.require(source, requirements=["C", "W"]))
    return source.detach().cpu()


def check_pixels(width: int, height: int, file: Any) -> None:
    """Raises MediaError for a picture without pixels, and for one with more than MAX_PIXELS."""
    if width < 1 or height < 1:
        raise MediaError("the picture has no pixels", file=file, found=f"{width} x {height}")
    if width * height > MAX_PIXELS:
        raise MediaError("the picture is too large", file=file, expected=f"at most {MAX_PIXELS} pixels",
                         found=f"{width} x {height} = {width * height} pixels", hint="make it smaller first")


@contextmanager
def _picture(source: Any) -> Iterator[Any]:
    """The PIL image of `source`, header read, its size within bounds."""
    pil = library("PIL.Image", "image")
    if _is_pil(source):
        check_pixels(source.width, source.height, "PIL image")
        yield source
        return
    with opened(source, MAX_BYTES) as stream:
        pil.init()
        try:
            image = pil.open(stream, formats=[f for f in FORMATS if f in pil.OPEN])
        except (pil.DecompressionBombError, pil.DecompressionBombWarning) as fault:
            raise MediaError("the picture is too large", file=said(source), expected=f"at most {MAX_PIXELS} pixels",
                             found=fault, hint="make it smaller first") from fault
        except pil.UnidentifiedImageError as fault:
            raise MediaError("this is not an image, or its header is cut off", file=said(source),
                             expected=f"one of {', '.join(FORMATS)}") from fault
        except _BROKEN as fault:
            raise MediaError("the image's header is broken", file=said(source), found=fault) from fault
        with image:
            check_pixels(image.width, image.height, said(source))
            yield image


def _orientation(image: Any) -> tuple[int, tuple[str, ...]]:
    """EXIF's number for how to turn the stored picture, 1 for not at all, and a note when it cannot be read.

    What a PNG says behind its pixels is not read: its size is known before them.
    """
    if image.format == "TIFF":  # Pillow turns these itself, and their size is upright from the start
        return 1, ()
    pil = library("PIL.Image", "image")
    try:
        found = pil.Image.getexif(image).get(_ORIENTATION, 1)  # a PNG's own getexif decodes the pixels first
    except _BROKEN as fault:
        return 1, (f"its EXIF block cannot be read, so it is not turned: {fault}",)
    return (found if found in range(2, 9) else 1), ()


def _left_out(image: Any) -> Iterator[str]:
    """A sentence for each thing that reading this image leaves out."""
    try:
        several = getattr(image, "is_animated", False)
    except _BROKEN as fault:
        several = False
        yield f"whether it has several frames cannot be read: {fault}"
    if several:
        yield "it has several frames: the first one is read"
    if image.mode in _ALPHA or "transparency" in image.info:
        yield "its transparency is dropped, not blended"
    if image.mode in _SIXTEEN_BITS:
        yield "of its 16 bits of grey the high 8 are read"


def _stored_view(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The upright picture [H, W, 3] seen as it is stored, without a copy."""
    return {
        1: lambda u: u, 2: lambda u: u[:, ::-1], 3: lambda u: u[::-1, ::-1], 4: lambda u: u[::-1],
        5: lambda u: u.transpose(1, 0, 2), 6: lambda u: np.rot90(u), 7: lambda u: u[::-1, ::-1].transpose(1, 0, 2),
        8: lambda u: np.rot90(u, -1),
    }[orientation](upright)


def _rgb(strip: Any, file: str) -> np.ndarray:
    """uint8 [h, w, 3], or [h, w, 1] for 16-bit grey, of a PIL image."""
    if strip.mode in _SIXTEEN_BITS:
        return (np.asarray(strip) >> 8).astype(np.uint8)[..., None]
    try:
        if strip.mode in _NO_RANGE:
            raise ValueError(f"mode {strip.mode} does not say which value is white")
        return np.asarray(strip.convert("RGB"))
    except ValueError as fault:
        raise MediaError("the image cannot be turned into RGB", file=file, found=fault,
                         hint="convert it to 8 bits a channel first") from fault
