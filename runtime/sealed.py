"""Kernels that were built ahead: found by what a launch asks for, checked by digest, started without a compiler."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from glmc.artifact import Artifact
from glmc.errors import DamagedArtifact
from glmc.program import KERNELS


class Sealed:
    """An artefact's kernels by digest. `missing`: launches that it does not hold -> how often each was asked for."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        index = artifact.json(KERNELS)
        try:
            self.names = {kernel["digest"]: kernel["name"] for kernel in index["kernels"]}
            self.ending = index["binary"]
        except (KeyError, TypeError) as fault:
            raise DamagedArtifact("the list of kernels lacks a field", file=artifact.folder / KERNELS,
                                  field=str(fault)) from fault
        self.missing: dict[str, int] = {}

    def find(self, digest: str, name: str) -> tuple[Path, Path] | None:
        """The checked files of a launch, description and binary; None, told once, for one that was not built ahead."""
        if digest in self.names:
            stem = f"kernels/{self.names[digest]}"
            return self.artifact.path(f"{stem}.json"), self.artifact.path(f"{stem}.{self.ending}")
        if name not in self.missing:
            warnings.warn(f"the kernel {name} was not built ahead for this launch and is compiled now", stacklevel=2)
        self.missing[name] = self.missing.get(name, 0) + 1
        return None


def sealed(artifact: Artifact) -> Callable[[], AbstractContextManager]:
    """What is entered around a run so that launches take the artefact's kernels."""
    from glmc.kernels import triton

    return functools.partial(triton.sealed, Sealed(artifact).find, {})
