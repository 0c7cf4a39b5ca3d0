"""How fast a GPU copies, in the device graphs of glmc.kernels.timing; and what the machine is."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from glmc.kernels.timing import microseconds


def device() -> dict[str, Any]:
    """The GPU, its driver and the versions of what compiles for it."""
    import triton

    found = torch.cuda.get_device_properties(0)
    return {"gpu": found.name, "memory_bytes": found.total_memory, "multiprocessors": found.multi_processor_count,
            "l2_bytes": found.L2_cache_size, "driver": torch._C._cuda_getDriverVersion(), "cuda": torch.version.cuda,
            "triton": triton.__version__}


def copy_bandwidth() -> dict[str, float]:
    """Bytes a second, read and written, that torch's copy moves on the device, by the size of a copy in bytes.

    Several buffers take turns, so that neither cache nor one address decides.
    """
    found = {}
    for size in (1 << 26, 1 << 28, 1 << 30):
        buffers = [(torch.empty(size, dtype=torch.uint8, device="cuda").random_(), torch.empty(size, dtype=torch.uint8,
                                                                                            device="cuda")) for _ in range(6)]
        samples = microseconds([lambda a=a, b=b: b.copy_(a) for a, b in buffers])
        found[str(size)] = 2 * size / statistics.median(samples) * 1e6
    return found
