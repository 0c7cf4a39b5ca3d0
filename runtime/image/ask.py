"""What an image is asked for with, as the published processor has it: text with the sizes behind it, and condition images.

Whole numbers come first and refusal with them; pixels are decoded last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from glmc.errors import MediaError, RequestOutOfBounds, UsageError
from glmc.runtime.image import places
from glmc.runtime.image.resize import condition_grid
from glmc.runtime.image.settings import Marks, Settings
from glmc.runtime.image.sizes import Grid, Params, generation_params, target_grids
from glmc.runtime.media.image import image_header, read_image
from glmc.runtime.media.patches import image_patches, resize_image
from glmc.runtime.media.settings import Sizing
from glmc.runtime.media.source import said
from glmc.runtime.text import Text


@dataclass(frozen=True)
class Asked:
    """ids: of the prompt, with one placeholder for each token of a source. positions: int64 [3, n]. sources: their grids.
    params: what is to be generated. ahead: int64 [3, max_new_tokens], the positions of that."""

    ids: list[int]
    positions: torch.Tensor
    sources: list[Grid]
    params: Params
    ahead: torch.Tensor


def asked(settings: Settings, text: Text, prompt: str, height: int, width: int, images: Sequence[Any], room: int) -> Asked:
    """What is generated from for an image of height x width pixels; headers of images are read and no pixels.

    room: the most tokens of a row. Raises UsageError, MediaError, RequestOutOfBounds.
    """
    if not isinstance(prompt, str):
        raise UsageError("an image is asked for with text", field="prompt", found=type(prompt).__name__)
    large, preview = target_grids(height, width)
    made = [large] if images else [preview, large]
    wanted = sum(grid.tokens for grid in made)
    _fit(wanted, room, "the image")
    headers = [image_header(image) for image in images]
    sources = [Grid(*condition_grid(header.height, header.width, settings.sizing)[1:]) for header in headers]
    _fit(wanted + sum(grid.tokens for grid in sources), room, "the image, with those that it is made from,")
    ids = _ids(settings.marks, text, prompt, sources, made[::-1])
    _fit(wanted + len(ids), room, "the image, with its prompt,")
    if ids.count(settings.marks.image_id) != sum(grid.tokens for grid in sources):
        raise UsageError("the prompt holds placeholders of images", field="prompt", found=settings.marks.image)
    positions, at = places.of_prompt(ids, settings.marks.begin_id, settings.marks.end_id, sources)
    rows = [(1, *grid) for grid in (*sources, *made[::-1])]
    return Asked(ids, positions, sources, generation_params(rows, not images), places.of_grids(made, at))


def pixels(settings: Sizing, images: Sequence[Any], sources: Sequence[Grid]) -> torch.Tensor:
    """float32 [P, values of a patch] of images whose headers gave these grids. Raises as read_image does, and MediaError."""
    return torch.cat([_pixels(settings, image, grid) for image, grid in zip(images, sources, strict=True)])


def _pixels(sizing: Sizing, source: Any, grid: Grid) -> torch.Tensor:
    image = read_image(source)
    if (found := Grid(*condition_grid(image.shape[0], image.shape[1], sizing)[1:])) != grid:
        raise MediaError("the image has changed since its header was read", file=said(source), expected=grid, found=found)
    return image_patches(resize_image(image, grid.h * sizing.patch, grid.w * sizing.patch), sizing)


def _ids(marks: Marks, text: Text, prompt: str, sources: Sequence[Grid], targets: Sequence[Grid]) -> list[int]:
    """The chat template's text, with each source as so many placeholders, the sizes of what is to come, and its first mark."""
    content: list[dict[str, str]] = [*({"type": "image"} for _ in sources), {"type": "text", "text": prompt}]
    spoken = text.rendered([{"role": "user", "content": content}], {"add_generation_prompt": False})
    pieces = spoken.split(marks.image)
    if len(pieces) != len(sources) + 1:
        raise UsageError("prompt and chat template speak of other images than are given", field="prompt",
                         expected=f"{len(sources)} times {marks.image}", found=len(pieces) - 1)
    whole = pieces[0] + "".join(marks.image * grid.tokens + piece for grid, piece in zip(sources, pieces[1:], strict=True))
    sizes = "".join(f"{marks.grid_begin}{grid.h} {grid.w}{marks.grid_end}" for grid in targets)
    encode = text.ids if spoken.startswith(marks.begin) else text.encode  # as transformers does
    return encode(f"{whole}{sizes}{marks.begin}")


def _fit(tokens: int, room: int, what: str) -> None:
    if tokens > room:
        raise RequestOutOfBounds(f"{what} takes more tokens than a row of the artefact holds", field="height, width",
                                 expected=f"at most max_len = {room}", found=tokens, hint="compile with a larger --max-len")
