"""Images of unequal grids, as the regions of a vision tower take them: what the proof of their native calls is run on."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import torch

from glmc.errors import InternalError
from glmc.program import Region

GRIDS = "grids"
"""Beside a step's sizes: height and width in patches of each of its images."""
_BLOCKS = (((1, 1),), ((2, 3), (1, 1), (5, 4)), ((8, 9),))
"""Steps, as images of so many blocks of patches: the smallest, several, and one of more patches than are looked at together."""
_MANY = re.compile(r"^(\d+)\*M$")


def sizes_of_images(region: Region) -> list[dict[str, Any]]:
    """The sizes of a region of a tower at each step, by the text of their expressions, and the images' grids."""
    texts = {str(s) for _, role, spec in region.inputs if role != "weight" for s in spec.shape}
    each = next((int(m[1]) for text in sorted(texts) if (m := _MANY.match(text))), 1)
    merge = math.isqrt(each)
    made = []
    for blocks in _BLOCKS:
        grids = [(h * merge, w * merge) for h, w in blocks]
        patches, images = sum(h * w for h, w in grids), len(grids)
        made.append({f"{each}*M": patches, "M": patches // each, "P": patches, "F": images, "F + 1": images + 1, GRIDS: grids})
    return made


def of_images(name: str, grids: list[tuple[int, int]], draw: torch.Generator) -> torch.Tensor:
    """The whole numbers of a step: `ends`, `grid`, or `positions`, drawn anew for each patch of an image."""
    if name == "ends":
        return torch.tensor([0, *itertools.accumulate(h * w for h, w in grids)], dtype=torch.int32)
    if name == "grid":
        return torch.tensor([(1, h, w) for h, w in grids])
    if name != "positions":
        raise InternalError("a region of a tower takes whole numbers that are unknown", field=name)
    return torch.cat([torch.stack([torch.randint(0, size, (h * w,), generator=draw) for size in (h, w)], -1) for h, w in grids])
