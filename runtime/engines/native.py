"""Engine `native`: the kernels of glmc's own library. A model runs whole, in one call a step (glmc.runtime.whole); what `open`
offers is one region by itself, for comparing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from glmc.artifact import Artifact
from glmc.native.alone import alone_with
from glmc.native.keep import kept_of
from glmc.program import Region
from glmc.runtime.device import Device


def open(artifact: Artifact, region: Region, form: str, device: Device,
         ) -> Callable[[list[torch.Tensor]], Sequence[torch.Tensor]]:
    """The region with the artefact's forms of its weights, the same for every form of call."""
    return alone_with(region, kept_of(artifact.json("program.json"), region.name))
