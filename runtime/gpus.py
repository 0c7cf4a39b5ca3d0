"""The GPUs that torch sees here, and whether what is compiled here for one would run, as far as that needs no artefact."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from glmc import gpu
from glmc.kernels import driver
from glmc.target import Target


def seen() -> list[dict[str, Any]]:
    """Of each GPU its maker's name, the target that it is, and bytes of its memory."""
    if not torch.cuda.is_available():
        return []
    return [{"name": gpu.model_of(torch.device("cuda", n)), "target": gpu.name_of(n),
             **dict(zip(("free_bytes", "total_bytes"), torch.cuda.mem_get_info(n), strict=True))}
            for n in range(torch.cuda.device_count())]


def driver_cuda() -> str | None:
    """The CUDA version that NVIDIA's driver offers, "13.0"; None where torch sees no GPU of NVIDIA's."""
    return ".".join(map(str, driver.version())) if torch.cuda.is_available() and not torch.version.hip else None


def verdict(target: Target, found: list[dict[str, Any]], offered: str | None) -> str:
    """What an artefact for a GPU target would be told here. found, offered: of `seen` and `driver_cuda`."""
    if target.name not in {one["target"] for one in found}:
        others = ", ".join(dict.fromkeys(f"{one['name']}, {one['target']}" for one in found))
        return "refused: torch sees no such GPU here" + (f", but {others}" if others else "")
    if offered is not None and target.gpu is not None and importlib.util.find_spec("triton"):
        from glmc.kernels import triton

        needed = triton.assembler(target.gpu)
        if needed is not None and int(offered.partition(".")[0]) < int(needed.partition(".")[0]):
            return f"refused: the NVIDIA driver offers CUDA {offered}, kernels that are compiled here need {needed}"
    return "runs"
