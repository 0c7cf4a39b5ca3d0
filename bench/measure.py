"""What every benchmark measures the same way: the machine, its load, its memory and matrix rates, interleaved samples.

Nothing here imports torch before a probe is asked for, so that a script may start processes from a small one.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glmc.machine import cpu_flags

PACKAGES = ("torch", "transformers", "safetensors", "numpy")
ENVIRONMENT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "GLMC_CACHE", "GLMC_ONLY", "GLMC_FUEL", "GLMC_TIMING")
STEADY = 0.15
"""Two probes of the same minutes that differ by more than this share say that the machine was not left alone."""


def machine() -> dict[str, Any]:
    """CPU model and flags, cores this process may use, memory in bytes, system, Python and package versions."""
    return {"cpu": _cpu_model(), "cpu_flags": cpu_flags(), "arch": platform.machine(),
            "cores": len(os.sched_getaffinity(0)), "memory_bytes": _memory_bytes(),
            "system": f"{platform.system()} {platform.release()}", "python": platform.python_version(),
            "packages": {name: importlib.metadata.version(name) for name in ("glmc", *PACKAGES)},
            # Which folder holds the cache says nothing about a figure, only whether there is one.
            "environment": {k: "set" if k == "GLMC_CACHE" else v for k in ENVIRONMENT if (v := os.environ.get(k))}}


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "CPU part"):
            return value.strip()
    return platform.processor() or "unknown"


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def load_average() -> list[float]:
    """The system's load averages over 1, 5 and 15 minutes: above 0.3 before a run, something else is running."""
    return [round(value, 2) for value in os.getloadavg()]


def summary(samples: list[float], digits: int = 4) -> dict[str, Any]:
    """Median, least, most, spread ((most - least) / median) and the samples themselves."""
    middle = statistics.median(samples)
    return {"median": round(middle, digits), "min": round(min(samples), digits), "max": round(max(samples), digits),
            "spread": round((max(samples) - min(samples)) / middle, 4) if middle else 0.0,
            "samples": [round(value, digits) for value in samples]}


def interleave(contenders: dict[str, Callable[[], float]], rounds: int, warm: int = 1) -> dict[str, list[float]]:
    """Ask each contender for a sample in turn, `rounds` times, in an order that shifts by one each round.

    What the machine does meanwhile then meets all of them. The first `warm` rounds are not kept.
    """
    names = list(contenders)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warm, rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            value = contenders[name]()
            if number >= 0:
                samples[name].append(value)
    return samples


def seconds_of(call: Callable[[], Any], rounds: int) -> list[float]:
    """The seconds of each of `rounds` calls, after one that is not kept."""
    call()
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return taken


def read_bandwidth(nbytes: int = 1 << 29, rounds: int = 9) -> dict[str, Any]:
    """GB/s (1e9 bytes) at which torch's threads read memory, by two ways of reading a float32 tensor of `nbytes`.

    `gb_per_second` is the median of the faster way: the greater it is, the harder a bound made from it.
    """
    import torch

    whole = torch.ones(nbytes // 4)
    matrix, vector = whole.view(-1, 4096), torch.ones(4096)
    ways = {"sum": lambda: whole.sum(), "matrix_vector": lambda: torch.mv(matrix, vector)}
    found = {name: summary([whole.nbytes / s / 1e9 for s in seconds_of(call, rounds)], 2)
             for name, call in ways.items()}
    return {"gb_per_second": max(f["median"] for f in found.values()), "bytes": whole.nbytes,
            "threads": torch.get_num_threads(), "ways": found}


def matrix_rate(size: int = 1024, rounds: int = 7) -> dict[str, float]:
    """GFLOP/s of a square product of `size`, in float32 and bfloat16, as medians."""
    import torch

    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.ones(size, size, dtype=dtype) for _ in range(2))
        taken = statistics.median(seconds_of(lambda a=a, b=b: a @ b, rounds))
        rates[str(dtype).removeprefix("torch.")] = round(2 * size**3 / taken / 1e9, 1)
    return rates


def steady(before: float, after: float) -> bool:
    """Whether two probes agree within STEADY; a figure between two that do not should be measured again."""
    return abs(before - after) <= STEADY * max(before, after)
