"""What the machine can do, asked in the same minute with the same threads: read and copy memory, multiply matrices."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from glmc.bench.turns import seconds_of, summary

STEADY = 0.15
"""Two probes of the same minutes that differ by more than this share say that the machine was not left alone."""


def read_bandwidth(nbytes: int = 1 << 29, rounds: int = 9, device: str = "cpu") -> dict[str, Any]:
    """GB/s (1e9 bytes) at which torch's threads read memory, by two ways of reading a float32 tensor of `nbytes`.

    `gb_per_second` is the median of the faster way: the greater it is, the harder a bound made from it.
    """
    import torch

    whole = _ones(nbytes, device)
    matrix, vector = whole.view(-1, 4096), torch.ones(4096, device=device)
    ways = {"sum": lambda: whole.sum(), "matrix_vector": lambda: torch.mv(matrix, vector)}
    found = {name: summary([whole.nbytes / s / 1e9 for s in seconds_of(_done(call, device), rounds)], 2)
             for name, call in ways.items()}
    return {"gb_per_second": max(f["median"] for f in found.values()), "bytes": whole.nbytes,
            "threads": torch.get_num_threads(), "ways": found}


def copy_bandwidth(nbytes: int = 1 << 28, rounds: int = 5, device: str = "cpu") -> float:
    """GB/s of a copy, its reads and its writes both counted; the median."""
    source, target = (_ones(nbytes, device) for _ in range(2))
    return round(2 * nbytes / statistics.median(seconds_of(_done(lambda: target.copy_(source), device), rounds)) / 1e9, 2)


def matrix_rate(size: int = 1024, rounds: int = 7, device: str = "cpu") -> dict[str, float]:
    """GFLOP/s of a square product of `size`, in float32 and bfloat16, as medians."""
    import torch

    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
        taken = statistics.median(seconds_of(_done(lambda a=a, b=b: a @ b, device), rounds))
        rates[str(dtype).removeprefix("torch.")] = round(2 * size**3 / taken / 1e9, 1)
    return rates


def probe(device: str = "cpu") -> dict[str, Any]:
    """All three, quickly, as a report keeps them."""
    large = device.partition(":")[0] != "cpu"
    return {"read_gb_per_second": read_bandwidth(1 << (31 if large else 28), 3, device)["gb_per_second"],
            "copy_gb_per_second": copy_bandwidth(1 << (30 if large else 27), 3, device),
            "matrix_gflops": matrix_rate(8192 if large else 768, 3, device)}


def steady(before: float, after: float) -> bool:
    """Whether two probes agree within STEADY; a figure between two that do not should be measured again."""
    return abs(before - after) <= STEADY * max(before, after)


def _ones(nbytes: int, device: str) -> Any:
    """float32 of so many bytes; on the CPU in huge pages, as loaded weights are: without, one thread reads a third less."""
    import torch

    from glmc.artifact_load import PrivateMemory

    if device.partition(":")[0] != "cpu":
        return torch.ones(nbytes // 4, device=device)
    return PrivateMemory(nbytes, Path("probe")).whole.view(torch.float32).fill_(1)


def _done(call: Any, device: str) -> Any:
    """A call that ends when its work has ended, also where the device works by itself."""
    import torch

    kind = device.partition(":")[0]
    if kind == "cpu":
        return call

    def whole() -> None:
        call()
        getattr(torch, kind).synchronize()

    return whole
