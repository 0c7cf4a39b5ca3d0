"""Engine `iree`: a region compiled by IREE, one module of its virtual machine a form, weights passed as arguments.

The module is native code: an artefact is trusted like a program.
"""

from __future__ import annotations

from glmc.artifact import Artifact
from glmc.iree import Loaded
from glmc.program import Region
from glmc.runtime.device import Device


def open(artifact: Artifact, region: Region, form: str, device: Device) -> Loaded:
    """Load the region's module for `form`. Raises DamagedArtifact when it is missing, differs from its digest, or cannot be
    loaded."""
    name = f"regions/{region.name}.{form}.vmfb"
    return Loaded(artifact.read(name), region, name)
