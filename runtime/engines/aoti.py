"""Engine `aoti`: a region compiled by AOTInductor, one shared library a form, weights passed as arguments.

The library is loaded from the artefact's folder after its digest was checked. It is native code: an artefact is trusted
like a program. Nothing here checks shapes: the session refuses what lies outside the bounds before it calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from glmc import kernels
from glmc.artifact import Artifact
from glmc.errors import DamagedArtifact
from glmc.program import Region
from glmc.runtime.device import Device


def open(artifact: Artifact, region: Region, form: str, device: Device,
         ) -> Callable[[list[torch.Tensor]], Sequence[torch.Tensor]]:
    """Load the region's library for `form`. The list passed to a call is consumed.

    Raises DamagedArtifact when the library is missing, differs from its digest, or cannot be loaded.
    """
    name = f"regions/{region.name}.{form}"
    for op in kernels.names():
        if any(f"glmc.{op}(" in line for line in region.body) or op == "linear":
            kernels.load(op, "cpu")  # registers the ops that compiled code calls by name
    if f"{name}.json" in artifact.files:
        artifact.path(f"{name}.json")
    library = artifact.path(f"{name}.so")
    try:
        runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(library), 1)
    except RuntimeError as error:
        raise DamagedArtifact("the region's library cannot be loaded", file=library, found=str(error)) from error
    return runner.run
