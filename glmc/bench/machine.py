"""The machine that was measured on: CPU, memory, system, versions. Nothing here imports torch."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from glmc.machine import cpu_flags

PACKAGES = ("glmc", "torch", "transformers", "safetensors", "numpy", "triton")
ENVIRONMENT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "GLMC_CACHE", "GLMC_ONLY", "GLMC_FUEL", "GLMC_TIMING", "GLMC_ISA")


def machine() -> dict[str, Any]:
    """CPU model and flags, cores this process may use, memory in bytes, system, Python and package versions."""
    return {"cpu": _cpu_model(), "cpu_flags": cpu_flags(), "arch": platform.machine(), "cores": len(cores()),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "system": f"{platform.system()} {platform.release()}", "python": platform.python_version(),
            "packages": {name: version(name) for name in PACKAGES},
            # Which folder holds the cache says nothing about a figure, only whether there is one.
            "environment": {k: "set" if k == "GLMC_CACHE" else v for k in ENVIRONMENT if (v := os.environ.get(k))}}


def cores() -> set[int]:
    """The CPUs that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def version(package: str) -> str | None:
    """The installed version, None where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    listing = Path("/proc/cpuinfo")
    for line in listing.read_text().splitlines() if listing.is_file() else ():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "CPU part"):
            return value.strip()
    return platform.processor() or "unknown"
