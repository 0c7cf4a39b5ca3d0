"""Condition images as tokens: the vision tower's rows, and the nearest of the image tokenizer's codes for each."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from glmc.runtime.by_region import ANY, stage_of
from glmc.runtime.image.sizes import Grid
from glmc.runtime.session import Model
from glmc.runtime.threads import torch_threads
from glmc.runtime.transfer import to_device
from glmc.runtime.vision import CODES


def tokens_of(model: Model, pixels: torch.Tensor, grids: Sequence[Grid]) -> list[torch.Tensor]:
    """pixels float32 [P, values of a patch] of images with these grids, one after another -> int64 [h, w] of each."""
    if model.vision is None or not grids:
        return []
    features = model.vision(pixels, torch.tensor([[1, *grid] for grid in grids]))
    program, native = model.programs[CODES], model.artifact.manifest["engine"] == "native"
    steps = stage_of(model.artifact, program, model.weights, model.kept, model.device)
    found = []
    with torch.no_grad(), torch_threads(model.threads if native else None):
        for rows, grid in zip(features.split([grid.tokens for grid in grids]), grids, strict=True):
            square = rows.to(model.vision.dtype).view(1, grid.h, grid.w, -1).permute(0, 3, 1, 2).contiguous()
            ids = steps.run(ANY, {"input:features": to_device(square, model.device.torch)}, True)
            found.append(ids.cpu().view(grid.h, grid.w))
    return found
