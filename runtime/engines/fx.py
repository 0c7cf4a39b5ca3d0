"""Engine `fx`: interprets a region's own text with the machine's kernels. Any torch device, no compiler."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from glmc.artifact import Artifact
from glmc.program import Region
from glmc.region import Bound


def open(artifact: Artifact, region: Region, form: str) -> Callable[[list[torch.Tensor]], Sequence[torch.Tensor]]:
    """The region, the same for every form."""
    bound = Bound(region, "cpu")
    return lambda inputs: bound(*inputs)
