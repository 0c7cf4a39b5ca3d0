"""The GPUs that torch sees here, under the names of targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from glmc.target import Target


def name_of(number: int) -> str:
    """The name that a target for GPU `number` would have: "cuda:sm_90", "rocm:gfx942". The GPU is there."""
    import torch

    found = torch.cuda.get_device_properties(number)
    return f"rocm:{found.gcnArchName.split(':')[0]}" if torch.version.hip else f"cuda:sm_{found.major}{found.minor}"


def here(target: Target) -> torch.device | None:
    """The first GPU here that is `target`, None where there is none or the target is no GPU."""
    import torch

    if target.gpu is None or not torch.cuda.is_available():
        return None
    fitting = (n for n in range(torch.cuda.device_count()) if name_of(n) == target.name)
    return next((torch.device("cuda", n) for n in fitting), None)


def model_of(device: torch.device) -> str:
    """What its maker calls a GPU: "NVIDIA H200"."""
    import torch

    return torch.cuda.get_device_name(device)
