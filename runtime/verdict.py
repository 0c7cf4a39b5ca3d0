"""Whether an artefact runs here, told before any weight is read: it runs, after a rebuild of some kernels, or not, and why."""

from __future__ import annotations

from dataclasses import dataclass

from glmc.artifact import Artifact
from glmc.errors import IncompatibleArtifact
from glmc.program import Program
from glmc.runtime.device import open_device
from glmc.runtime.memory import cache_bytes


@dataclass(frozen=True)
class Verdict:
    """kernels: those that this version has otherwise than the artefact, compiled when they are first started. because: what
    stands against it, None where nothing does."""

    kernels: tuple[str, ...] = ()
    because: str | None = None

    def text(self) -> str:
        """In one sentence."""
        if self.because is not None:
            return f"refused: {self.because}"
        return f"runs after a rebuild of these kernels: {', '.join(self.kernels)}" if self.kernels else "runs"


def verdict(artifact: Artifact, program: Program, asked: str | None = None) -> Verdict:
    """What `glmc.load` would say on this machine, on the device `asked` (None: the target's own).

    Raises UsageError for a device that the target does not have, DamagedArtifact.
    """
    try:
        return Verdict(open_device(artifact, asked, cache_bytes(program, artifact.manifest)).stale)
    except IncompatibleArtifact as fault:
        told = [fault.what, *(f"{name} {value}" for name, value in (("expected", fault.expected), ("found", fault.found))
                              if value is not None), *([fault.hint] if fault.hint else [])]
        return Verdict(because="; ".join(told))
