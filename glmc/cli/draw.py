"""`glmc run` of an artefact that makes pictures: one picture from one prompt, written to a file."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import glmc
from glmc.artifact import Artifact
from glmc.cli import arguments, show
from glmc.errors import UsageError
from glmc.runtime.image.file import pixels_of_size, place_of, written
from glmc.runtime.supervise import Supervised

if TYPE_CHECKING:
    from glmc.runtime.image.picture import Picture

Size = Annotated[str | None, typer.Option("--size", metavar="WxH", show_default=False,
                                          help="Of a picture: width and height in pixels, as 1024x768.")]
Output = Annotated[Path | None, typer.Option("-o", metavar="FILE", show_default=False,
                                             help="Where a picture is written; it must not exist.")]
Steps = Annotated[int, typer.Option("--steps", metavar="N", help="Steps from noise to a picture.")]
Guidance = Annotated[float, typer.Option("--guidance", metavar="F",
                                         help="How strongly a picture follows its prompt; 1 is plain.")]
CfgParallel = Annotated[bool, typer.Option("--cfg-parallel",
                                           help="Of a picture: two halves of the ranks take guidance's two calls.")]
TEXT_ONLY = {"max_new_tokens": "--max-new-tokens", "temperature": "--temperature", "top_p": "--top-p", "top_k": "--top-k",
             "repetition_penalty": "--repetition-penalty", "raw": "--raw", "video": "--video", "fps": "--fps",
             "video_max_tokens": "--video-max-tokens"}
"""Parameters of `glmc run` that an artefact of pictures does not take, and their flags."""
PICTURES_ONLY = {"size": "--size", "output": "-o", "steps": "--steps", "guidance": "--guidance",
                 "cfg_parallel": "--cfg-parallel"}
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


def draw(out: Path, asked: dict[str, Any], ranks: int, deadline: float, device: str | None, json: bool) -> None:
    """Make a picture and write it; its path on stdout, or one JSON object. asked: the fields of a Request of pictures.

    Raises UsageError and what `generate` raises.
    """
    height, width = pixels_of_size(asked["size"])
    place = place_of(asked["output"])
    if ranks == 1:
        if asked["cfg"]:
            raise UsageError("guidance's two calls are shared by several ranks", field="--cfg-parallel", expected="--ranks N")
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the path alone
            model: Any = glmc.load(out, device=device)
            made: Picture = model.generate(asked["prompt"], height, width, asked["images"], asked["steps"], asked["guidance"],
                                           asked["seed"])
        told = {**written(made.image, place), "seed": made.seed, "timings": made.timings}
    else:
        if height is not None:
            from glmc.runtime.image.plan import check_rows

            check_rows(height, ranks // 2 if asked["cfg"] else ranks)
        request = {**asked, "output": str(place.absolute()), "images": [str(image.absolute()) for image in asked["images"]]}
        run = Supervised(out, request, ranks, deadline, device)
        for _ in run:
            pass
        told = vars(run.result) | {"path": str(place)}
    if json:
        show.data(told)
        return
    typer.echo(place)
    laps = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in told["timings"].items())
    show.talk(f"{told['width']} x {told['height']}, seed {told['seed']}: {laps}")
