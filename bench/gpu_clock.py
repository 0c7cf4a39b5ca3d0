"""How GPU benchmarks time: device graphs of many calls over several sets of data, replayed; and what the machine is."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

REPEATS = 15
"""Replays of a graph that are timed; the first two are not kept."""


def device() -> dict[str, Any]:
    """The GPU, its driver and the versions of what compiles for it."""
    import triton

    found = torch.cuda.get_device_properties(0)
    return {"gpu": found.name, "memory_bytes": found.total_memory, "multiprocessors": found.multi_processor_count,
            "l2_bytes": found.L2_cache_size, "driver": torch._C._cuda_getDriverVersion(), "cuda": torch.version.cuda,
            "triton": triton.__version__}


def microseconds(calls: Sequence[Callable[[], Any]], repeats: int = REPEATS) -> list[float]:
    """Microseconds a call of `calls`, one sample a replay of a graph that holds them all in turn.

    Calls that read other memory each keep the cache from answering for them.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for call in calls[:2]:
            call()
    torch.cuda.current_stream().wait_stream(aside)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    samples = []
    for _ in range(repeats + 2):
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        graph.replay()
        after.record()
        torch.cuda.synchronize()
        samples.append(before.elapsed_time(after) * 1e3 / len(calls))
    del graph
    return samples[2:]


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
