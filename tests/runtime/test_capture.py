"""Recorded decode steps: static memory, one recording a bucket, and the numbers of steps that are not recorded."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

from glmc.runtime.capture import Decoder, Graphs, again, bucket


@pytest.mark.parametrize(("slots", "most", "wanted"), [(1, 80, 2), (2, 80, 2), (3, 80, 4), (64, 80, 64),
                                                       (65, 80, 80), (80, 80, 80), (5, 1024, 8)])
def test_buckets(slots, most, wanted):
    assert bucket(slots, most) == wanted


class Recorder:
    """A device that records as a GPU does: what ran while a graph was open runs again, on the memory of then."""

    def __init__(self):
        self.open, self.replays, self.kept = None, 0, set()
        device = self

        class CUDAGraph:
            def replay(self):
                device.replays += 1
                self.result.copy_(self.step())

        self.CUDAGraph, self.Stream = CUDAGraph, lambda: SimpleNamespace(wait_stream=lambda other: None)
        self.graph_pool_handle = object
        self.place: list[str] = []

    def current_stream(self):
        return SimpleNamespace(wait_stream=lambda other: None)

    def stream(self, aside):
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def device(self, place):
        self.place.append(str(place))
        yield
        self.place.pop()

    @contextlib.contextmanager
    def graph(self, graph, pool, stream):
        assert self.place == ["cpu"], "recorded on whichever device was the current one"
        self.open = graph
        self.kept.add((pool, stream is not None))
        yield
        self.open = None


def run_on(device, calls):
    """A model whose logits are its inputs, that knows whether it is being recorded."""
    def run(tokens, positions, slots):
        made = torch.stack((tokens, positions, torch.full_like(tokens, slots)), -1).float()
        calls.append((tokens.data_ptr(), positions.data_ptr(), slots))
        if device is not None and device.open is not None:
            device.open.result, device.open.step = made, lambda: run(tokens, positions, slots)
        return made

    return run


@pytest.mark.parametrize("kind", ["again", "graphs"])
def test_every_step_sees_its_own_tokens_in_memory_that_stays(kind):
    device, calls, cpu = Recorder(), [], torch.device("cpu")
    decoder = Decoder(run_on(device, calls), again if kind == "again" else Graphs(device, cpu), 80, cpu)
    for token in range(1, 12):
        logits = decoder(torch.tensor([[token]]), torch.tensor([[token + 2]]))
        assert logits.tolist() == [[[token, token + 2, bucket(token + 3, 80)]]]
    for rows in (2, 3):
        tokens = torch.arange(rows)[:, None]
        assert decoder(tokens, tokens + 5)[:, 0, 1].tolist() == [5 + i for i in range(rows)]
    assert set(decoder.recorded) == {(1, 4), (1, 8), (1, 16), (2, 8), (3, 8)}
    assert len({places[:2] for places in calls}) == len(decoder.recorded), "a step read memory of its own each time"
    assert device.replays == (13 if kind == "graphs" else 0)
    assert len(device.kept) == (kind == "graphs"), "the recordings share one pool of memory"
