"""This machine's CPU: which vector instructions compiled code may use, and whether an artefact made elsewhere fits."""

from __future__ import annotations

import platform
from pathlib import Path

from glmc.errors import IncompatibleArtifact

# What Inductor's -march=native and vector types depend on.
_LOOKED_AT = ("avx2", "fma", "f16c", "bmi2", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "avx512_vnni",
              "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8", "sha_ni", "asimd", "sve", "bf16")


def cpu_flags() -> list[str]:
    """The instruction sets of interest that this CPU has, sorted; empty where the system does not tell."""
    listing = Path("/proc/cpuinfo")
    if not listing.is_file():
        return []
    words: set[str] = set()
    for line in listing.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("flags", "features"):
            words.update(value.split())
            break
    return sorted(words.intersection(_LOOKED_AT))


def check(made_for: dict, file: object) -> None:
    """Raise IncompatibleArtifact where code made for `made_for` ({arch, cpu_flags}) cannot run here."""
    if made_for["arch"] != platform.machine():
        raise IncompatibleArtifact("the artefact was compiled for another architecture", file=file,
                                   field="machine.arch", expected=platform.machine(), found=made_for["arch"])
    missing = sorted(set(made_for["cpu_flags"]) - set(cpu_flags()))
    if missing:
        raise IncompatibleArtifact("the artefact uses instructions that this CPU lacks", file=file,
                                   field="machine.cpu_flags", expected=f"a CPU with {', '.join(missing)}",
                                   found="this CPU")
