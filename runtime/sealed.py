"""Kernels that were built ahead: found by what a launch asks for, checked by digest, started without a compiler."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from glmc.artifact import Artifact
from glmc.errors import DamagedArtifact
from glmc.program import KERNELS


class Sealed:
    """An artefact's kernels by digest. `stale`: those that this version of glmc has otherwise, and which are compiled here.
    `missing`: launches that it does not hold -> how often each was asked for. `cuda`: the version of their assembler."""

    def __init__(self, artifact: Artifact) -> None:
        """Raises DamagedArtifact."""
        from glmc.kernels import triton

        self.artifact = artifact
        index = artifact.json(KERNELS)
        try:
            self.names = {kernel["digest"]: kernel["name"] for kernel in index["kernels"]}
            self.ending, self.cuda = index["binary"], index["cuda"]
            held = {kernel["kernel"]: kernel["source"] for kernel in index["kernels"]}
        except (KeyError, TypeError) as fault:
            raise DamagedArtifact("the list of kernels lacks a field", file=artifact.folder / KERNELS,
                                  field=str(fault)) from fault
        self.stale = tuple(kernel.rpartition(".")[2] for kernel, source in held.items() if triton.source_of(kernel) != source)
        self.missing: dict[str, int] = {}

    def check(self) -> None:
        """Compare the files of every kernel with their digests: they are few megabytes. Raises DamagedArtifact."""
        for name in self.names.values():
            for ending in ("json", self.ending):
                self.artifact.hash_file(f"kernels/{name}.{ending}")

    def find(self, digest: str, name: str) -> tuple[Path, Path] | None:
        """The checked files of a launch, description and binary; None, told once, for one that was not built ahead."""
        if digest in self.names:
            stem = f"kernels/{self.names[digest]}"
            return self.artifact.path(f"{stem}.json"), self.artifact.path(f"{stem}.{self.ending}")
        if name not in self.missing and name not in self.stale:
            warnings.warn(f"the kernel {name} was not built ahead for this launch and is compiled now", stacklevel=2)
        self.missing[name] = self.missing.get(name, 0) + 1
        return None


def calling(kernels: Sealed, place: torch.device) -> Callable[[], AbstractContextManager]:
    """What is entered around a run so that launches take the artefact's kernels, on the GPU `place`."""
    from glmc.kernels import triton

    opened: triton.Opened = {}

    @contextlib.contextmanager
    def entered() -> Iterator[None]:
        with torch.cuda.device(place), triton.sealed(kernels.find, opened):
            yield

    return entered
