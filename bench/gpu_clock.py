"""How fast a GPU copies, in the device graphs of glmc.kernels.timing; and what the machine is."""

from __future__ import annotations

import functools
import statistics
from typing import Any

import torch
import triton
import triton.language as tl

from glmc.kernels import driver
from glmc.kernels.timing import microseconds


def device() -> dict[str, Any]:
    """The GPU, its driver and the versions of what compiles for it."""
    found = torch.cuda.get_device_properties(0)
    return {"gpu": found.name, "memory_bytes": found.total_memory, "multiprocessors": found.multi_processor_count,
            "l2_bytes": found.L2_cache_size, "driver": list(driver.version()), "cuda": torch.version.cuda,
            "triton": triton.__version__}


@triton.jit
def copy_kernel(source, target, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(source + at))


def copy_bandwidth() -> dict[str, float]:
    """Bytes a second, read and written, that a copy moves on the device: torch's, and a plain kernel's, by bytes of a copy.

    Several buffers take turns, so that neither cache nor one address decides.
    """
    found = {}
    for size in (1 << 26, 1 << 28, 1 << 30):
        buffers = [(torch.empty(size, dtype=torch.uint8, device="cuda").random_(), torch.empty(size, dtype=torch.uint8,
                                                                                            device="cuda")) for _ in range(6)]
        ways = {"torch": lambda a, b: b.copy_(a),
                "kernel": lambda a, b: copy_kernel[(a.numel() // 16384,)](a, b, BLOCK=16384)}
        for name, way in ways.items():
            samples = microseconds([functools.partial(way, a, b) for a, b in buffers])
            found[f"{name} {size}"] = 2 * size / statistics.median(samples) * 1e6
    return found
