"""One picture, made by all ranks together: rank MAIN draws tokens and noise and writes the picture, all of them denoise."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from glmc.artifact import Artifact
from glmc.errors import UsageError
from glmc.runtime.image.file import pixels_of_size, place_of, written
from glmc.runtime.image.pipeline import ImageModel
from glmc.runtime.image.sharing import Sharing
from glmc.runtime.world import World


@dataclass(frozen=True)
class Request:
    """What `glmc run` was asked. size: width x height, None for the first image's. A seed of None is drawn by rank MAIN.

    cfg: two halves of the ranks take guidance's two calls.
    """

    prompt: str
    output: str | None = None
    size: str | None = None
    images: tuple[str, ...] = ()
    steps: int = 50
    guidance: float = 1.5
    seed: int | None = None
    cfg: bool = False

    @staticmethod
    def of(given: Namespace) -> Request:
        """What a worker's command line asks for."""
        return Request(**{one.name: getattr(given, one.name) for one in fields(Request)})


def opened(artifact: Artifact, world: World, request: Request, device: str | None, threads: int) -> ImageModel:
    """The artefact as this rank runs it. Raises UsageError, DamagedArtifact, IncompatibleArtifact, StorageError, RankError."""
    if request.cfg and world.size % 2:
        raise UsageError("guidance's two calls need two halves of the ranks", field="ranks", found=world.size,
                         expected="an even number", hint="leave out --cfg-parallel")
    groups = world.groups(guidance=2, rows=world.size // 2) if request.cfg else {}
    return ImageModel(artifact, device, threads, world, Sharing(world, groups.get("rows"), groups.get("guidance")))


def answer(model: ImageModel, request: Request, piece: Callable[[str], None]) -> dict[str, Any]:
    """What is told of the picture, which rank MAIN has written then. Raises what any rank raised."""
    height, width = pixels_of_size(request.size)
    place = place_of(None if request.output is None else Path(request.output))
    made = model.generate(request.prompt, height, width, [Path(image) for image in request.images], request.steps,
                          request.guidance, request.seed)
    told = {"seed": made.seed, "timings": made.timings}
    if made.image is not None:
        told |= written(made.image, place)
    return told


def told(result: dict[str, Any]) -> dict[str, Any]:
    """An answer as JSON."""
    return result
