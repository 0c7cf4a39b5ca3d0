"""Where a picture is written, and how large it is asked for, as people say it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from glmc.errors import OutputExists, StorageError, UsageError

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def pixels_of_size(text: str | None) -> tuple[int | None, int | None]:
    """Height and width of "WIDTHxHEIGHT", or None for those of the first image. Raises UsageError."""
    if text is None:
        return None, None
    found = re.fullmatch(r"([1-9]\d{0,6})x([1-9]\d{0,6})", text)
    if found is None:
        raise UsageError("this is no size", field="--size", expected="width x height in pixels, as 1024x768", found=text)
    return int(found[2]), int(found[1])


def place_of(output: Path | None) -> Path:
    """The file to write, which is none yet. Raises UsageError, OutputExists."""
    if output is None:
        raise UsageError("a picture is written to a file", field="-o", expected="-o FILE")
    if output.suffix.lower() not in FORMATS:
        raise UsageError("the file's name says no known format", field="-o", expected=", ".join(FORMATS), found=output.name)
    if output.exists() or output.is_symlink():
        raise OutputExists("the output is there already", file=output)
    return output


def written(image: Any, place: Path) -> dict[str, Any]:
    """Write an image of PIL; its path and size. A file that cannot be written whole is not left. Raises StorageError."""
    try:
        with place.open("xb") as file:
            try:
                image.save(file, FORMATS[place.suffix.lower()])
                file.flush()
            except OSError:
                place.unlink()
                raise
    except OSError as fault:
        raise StorageError("the picture cannot be written", file=place, found=fault.strerror or str(fault)) from fault
    return {"path": str(place), "height": image.height, "width": image.width}
