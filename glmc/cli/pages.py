"""`--html FILE` of `glmc plan` and `glmc inspect`: the page that draws a program is written to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glmc.errors import OutputExists, StorageError

Html = Annotated[Path | None, typer.Option(
    "--html", metavar="FILE", show_default=False,
    help="Draw the program, and its regions before and after the passes, as a page in FILE, which must not exist.")]


def free(file: Path | None) -> None:
    """Raises OutputExists for a file that is there already, StorageError for one in a folder that is not."""
    if file is not None and (file.exists() or file.is_symlink()):
        raise OutputExists("there is a file at this path already", file=file)
    if file is not None and not file.parent.is_dir():
        raise StorageError("the folder of the page is not there", file=file.parent)


def write(file: Path, text: str) -> None:
    """Write a page. Raises OutputExists, StorageError."""
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError as fault:
        raise OutputExists("there is a file at this path already", file=file) from fault
    except OSError as fault:
        raise StorageError("the page cannot be written", file=file, found=fault.strerror) from fault
