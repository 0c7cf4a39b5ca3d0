"""How long a call takes on a GPU: many calls in one recorded graph of the device, so that no Python stands between them.

Calls go round sets of inputs, so many that what does not fit the device's own cache is not found there again; small inputs
are, as they are when a model runs: what a step reads was just made by the step before.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

_REPEATS = 15
"""Recorded graphs that are timed; the figure is their median."""
_GRAPH_US = 2000.0
"""About how long one recorded graph should run, in microseconds."""
_MOST_CALLS = 100
"""The most calls in one recorded graph."""
_MOST_SETS = 16
"""The most sets of inputs that calls go round."""
_PAST = 3
"""Sets of inputs together are so many times the size of the device's cache."""
_LEFT = 1 << 28
"""Bytes that may stay behind before they are looked for: that takes a second beside a large traced model."""


@dataclass(frozen=True)
class Figure:
    """Microseconds a call: the median of repeats, and the distance between their quartiles."""

    us: float
    spread_us: float


def figure(samples: Sequence[float]) -> Figure:
    """Of at least two repeats, each in microseconds a call."""
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Figure(round(statistics.median(samples), 3), round(high - low, 3))


class Clock(Protocol):
    """Something that times calls. device: where their inputs lie."""

    device: torch.device

    def sets(self, size: int) -> int:
        """How many sets of inputs of `size` bytes calls should go round."""

    def __call__(self, call: Callable[[Any], Any], inputs: Sequence[Any]) -> Figure:
        """The time of `call(one of inputs)`; whatever the call raises passes."""

    def recover(self) -> None:
        """Give back the memory of what was timed. Raises where the device is lost after a fault."""


class GpuClock:
    """The clock of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cache: int = torch.cuda.get_device_properties(device).L2_cache_size

    def sets(self, size: int) -> int:
        """As many as go `_PAST` the cache, at most `_MOST_SETS` and what half of the free memory holds, at least one."""
        room = torch.cuda.mem_get_info(self.device)[0] // 2
        return max(1, min(_MOST_SETS, -(-_PAST * self._cache // max(size, 1)), room // max(size, 1)))

    def __call__(self, call: Callable[[Any], Any], inputs: Sequence[Any]) -> Figure:
        """The time of `call` on the device, without what starting it from Python costs; whatever it raises passes."""
        with torch.cuda.device(self.device), torch.no_grad():
            call(inputs[0])  # compiles what has to be
            rough = _between(lambda: call(inputs[-1]))
            count = max(len(inputs), min(_MOST_CALLS, int(_GRAPH_US / rough)))
            return figure(microseconds([partial(call, inputs[n % len(inputs)]) for n in range(count)]))

    def recover(self) -> None:
        """Give back the memory of what was timed. Raises RuntimeError where the device is lost after a fault."""
        torch.cuda.synchronize(self.device)
        if torch.cuda.memory_allocated(self.device) > _LEFT:
            gc.collect()
        torch.cuda.empty_cache()


def microseconds(calls: Sequence[Callable[[], Any]], repeats: int = _REPEATS) -> list[float]:
    """Microseconds a call of `calls`; one sample a replay of a graph that holds them all in turn.

    Calls that read other memory each keep the device's cache from answering for them.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for call in calls[:2]:
            call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    return [_between(graph.replay, before=graph.replay) / len(calls) for _ in range(repeats)]


def _between(work: Callable[[], Any], before: Callable[[], Any] = lambda: None) -> float:
    """Microseconds that `work` takes on the device. before: work that hides how long starting the other takes."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before()
    start.record()
    work()
    end.record()
    end.synchronize()
    return max(start.elapsed_time(end) * 1000, 0.001)
