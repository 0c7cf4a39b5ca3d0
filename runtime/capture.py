"""The decode step, recorded once for each number of rows and bucket of slots, and replayed: no Python between its kernels.

A graph replays the addresses it was recorded with. So tokens and positions are copied into tensors of its own, the cache stays
where it is, and the slots are those of the bucket; what lies behind a row's position is hidden by the model's own mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from glmc.runtime.transfer import put

Step = Callable[[], torch.Tensor]
Record = Callable[[Step], Step]
"""Runs a step once or more and returns what replays it: the same work on the same memory."""

_WARM = 2
"""Runs before a recording, in which libraries choose their algorithms and kernels are loaded."""


def again(step: Step) -> Step:
    """What devices that only check do: run the step anew, into the memory of its first result."""
    result = step().clone()
    return lambda: result.copy_(step())


class Graphs:
    """Recording by device graphs, all on one stream and in one pool of memory: what one made is gone when another is replayed.

    device: `torch.cuda` or `torch_npu.npu`, which offer them under the same names. place: the one that runs.
    """

    def __init__(self, device: Any, place: torch.device) -> None:
        self._device, self._place = device, place
        self._aside: Any = None
        self._pool: Any = None

    def __call__(self, step: Step) -> Step:
        device = self._device
        with device.device(self._place):
            if self._aside is None:
                self._aside, self._pool = device.Stream(), device.graph_pool_handle()
            self._aside.wait_stream(device.current_stream())
            with device.stream(self._aside):
                for _ in range(_WARM):
                    step()
            device.current_stream().wait_stream(self._aside)
            graph = (device.CUDAGraph if hasattr(device, "CUDAGraph") else device.NPUGraph)()
            with device.graph(graph, pool=self._pool, stream=self._aside):
                result = step()

        def replay() -> torch.Tensor:
            graph.replay()
            return result

        return replay


def bucket(slots: int, most: int) -> int:
    """The least power of two that holds so many slots, at most `most`."""
    return min(max(2, 1 << (slots - 1).bit_length()), most)


class Decoder:
    """Recorded decode steps of one model.

    run(tokens, positions, slots): the logits [B, 1, vocabulary] of one token a row over the first `slots` slots.
    """

    def __init__(self, run: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor], record: Record, most: int,
                 device: torch.device) -> None:
        self._run, self._record, self._most, self._device = run, record, most, device
        self.recorded: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor, Step]] = {}

    def __call__(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """tokens [B, 1] wherever they are, positions [B, 1] on the host, int64 -> logits [B, 1, vocabulary], valid until the
        next call. Nothing waits for the device, unless the step is recorded first."""
        key = len(tokens), bucket(int(positions.max()) + 1, self._most)
        if key not in self.recorded:
            own = tokens.to(self._device, copy=True), positions.to(self._device, copy=True)
            self.recorded[key] = (*own, self._record(lambda: self._run(*own, key[1])))
        into, at, replay = self.recorded[key]
        put(into, tokens)
        put(at, positions)
        return replay()
