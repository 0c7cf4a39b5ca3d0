"""Engine `fx`: interprets a region's own text with the kernels of the device's machine. Any torch device, no compiler."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from glmc.artifact import Artifact
from glmc.program import Region
from glmc.region import Bound
from glmc.runtime.device import Device


def open(artifact: Artifact, region: Region, form: str, device: Device,
         ) -> Callable[[list[torch.Tensor]], Sequence[torch.Tensor]]:
    """The region, the same for every form."""
    bound = Bound(region, device.kernels, str(device.torch))

    def call(inputs: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        with device.calling():
            return bound(*inputs)

    return call
