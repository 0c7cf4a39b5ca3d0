"""`glmc run` of an artefact that makes pictures: one picture from one prompt, written to a file."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import glmc
from glmc.artifact import Artifact
from glmc.cli import arguments, show
from glmc.errors import OutputExists, StorageError, UsageError

if TYPE_CHECKING:
    from glmc.runtime.image.picture import Picture

Size = Annotated[str | None, typer.Option("--size", metavar="HxW", show_default=False,
                                          help="Of a picture: height and width in pixels, as 1024x768.")]
Output = Annotated[Path | None, typer.Option("-o", metavar="FILE", show_default=False,
                                             help="Where a picture is written; it must not exist.")]
Steps = Annotated[int, typer.Option("--steps", metavar="N", help="Steps from noise to a picture.")]
Guidance = Annotated[float, typer.Option("--guidance", metavar="F",
                                         help="How strongly a picture follows its prompt; 1 is plain.")]

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
TEXT_ONLY = {"max_new_tokens": "--max-new-tokens", "temperature": "--temperature", "top_p": "--top-p", "top_k": "--top-k",
             "repetition_penalty": "--repetition-penalty", "raw": "--raw", "video": "--video", "fps": "--fps",
             "video_max_tokens": "--video-max-tokens"}
"""Parameters of `glmc run` that an artefact of pictures does not take, and their flags."""
PICTURES_ONLY = {"size": "--size", "output": "-o", "steps": "--steps", "guidance": "--guidance"}
"""Those that only such an artefact takes."""


def draws(out: Path, ctx: typer.Context) -> bool:
    """Whether the artefact makes pictures. Raises UsageError for a flag that it does not take."""
    found = arguments.is_artifact(out) and Artifact.open(out).manifest.get("dims", {}).get("pictures") is not None
    for name, given in (TEXT_ONLY if found else PICTURES_ONLY).items():
        source = ctx.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            raise UsageError(f"this artefact makes {'pictures' if found else 'text'}", field=given,
                             hint=f"{given} is for artefacts of {'text' if found else 'pictures'}")
    return found


def draw(out: Path, prompt: str, output: Path | None, size: str | None, images: Sequence[Path], steps: int, guidance: float,
         seed: int | None, device: str | None, json: bool) -> None:
    """Make a picture and write it; its path on stdout, or one JSON object. Raises UsageError and what `generate` raises."""
    place, height, width = _place(output), *_size(size)
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the path alone
        model: Any = glmc.load(out, device=device)
        made: Picture = model.generate(prompt, height, width, images, steps, guidance, seed)
    try:
        with place.open("xb") as file:
            made.image.save(file, FORMATS[place.suffix.lower()])
    except OSError as fault:
        raise StorageError("the picture cannot be written", file=place, found=fault.strerror or str(fault)) from fault
    told = {"path": str(place), "height": made.image.height, "width": made.image.width, "seed": made.seed,
            "timings": made.timings}
    if json:
        show.data(told)
        return
    typer.echo(place)
    laps = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in made.timings.items())
    show.talk(f"{told['height']} x {told['width']}, seed {made.seed}: {laps}")


def _size(text: str | None) -> tuple[int | None, int | None]:
    """Height and width, or None for those of the first image."""
    if text is None:
        return None, None
    found = re.fullmatch(r"([1-9]\d{0,6})x([1-9]\d{0,6})", text)
    if found is None:
        raise UsageError("this is no size", field="--size", expected="height and width in pixels, as 1024x768", found=text)
    return int(found[1]), int(found[2])


def _place(output: Path | None) -> Path:
    if output is None:
        raise UsageError("a picture is written to a file", field="-o", expected="-o FILE")
    if output.suffix.lower() not in FORMATS:
        raise UsageError("the file's name says no known format", field="-o", expected=", ".join(FORMATS), found=output.name)
    if output.exists() or output.is_symlink():
        raise OutputExists("the output is there already", file=output)
    return output
