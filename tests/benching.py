"""A benchmark without a model: contenders with planted delays on a clock that only they move, and reports made of them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from glmc.bench.measure import Measured, measure
from glmc.bench.peer import Contender
from glmc.bench.report import report
from glmc.bench.sample import Row, Sample, watch
from glmc.bench.work import Work

WORK = Work(128, 32)
TRAFFIC = {"weight_bytes": 4e8, "expert_bytes": 0.0, "expert_share": 0.0, "kv_bytes": 6e3, "operations": 4e8,
           "head_operations": 1e7, "attention_operations": 1e4}
LEDGER = [{"fusion": "rms_norm", "expected": 3, "proved": 3, "taken": 2,
           "refused": [{"site": "layers.0", "reason": "too small"}],
           "predicted_us": 2.5, "measured_us": None}]
STEP = {"name": "decode", "tokens": 1, "context": 128, "samples": 24, "us": 30.0, "inside_us": 27.0,
        "regions": [{"region": "layer_1", "calls": 2, "us": 20.0, "share": 0.74},
                    {"region": "head_2", "calls": 1, "us": 7.0, "share": 0.26}],
        "kernels": [{"region": "layer_1", "kernel": "linear", "calls": 2, "us": 20.0, "share": 0.74},
                    {"region": "head_2", "kernel": "linear", "calls": 1, "us": 7.0, "share": 0.26}],
        "ops": [{"region": "layer_1", "op": "linear(o)", "kernel": "linear", "calls": 2, "us": 20.0, "share": 0.74},
                {"region": "head_2", "op": "linear(lm_head)", "kernel": "linear", "calls": 1, "us": 7.0, "share": 0.26}],
        "timeline": [[0, 10.0], [0, 10.0], [1, 7.0]]}
PROFILE = {"engine": "native", "steps": [STEP]}
Delays = Callable[[int, int], float]
"""(request, token) -> seconds before it, token 0 the first."""


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


def steady(request: int, token: int) -> float:
    return 0.050 if token == 0 else 0.010


class Planted:
    """A contender's process whose tokens come after planted delays."""

    def __init__(self, contender: Contender, clock: Clock, delays: Delays, asked: list[str]) -> None:
        self.contender, self.clock, self.delays, self.asked, self.count = contender, clock, delays, asked, -1
        self.ready = {"phases": {}, "facts": {"traffic": TRAFFIC, "device": "cpu", "threads": 2}, "vocabulary": 100,
                      "compiles": contender.kind == "inductor", "watching_seconds": 1e-7, "versions": {"torch": "2"}}
        self.phases = {"process": 0.02, "import": 1.0, "open": 0.1, "weights": 0.5, "place": 0.01}
        self.memory: dict[str, int | None] = {"host_bytes": 10**9, "device_bytes": None}
        self.pid, self.closed = 1, False

    def ask(self, work: Work) -> Sample:
        self.asked.append(self.contender.name)
        self.count += 1

        def begin() -> Iterator[int]:
            for token in range(work.output_len):
                self.clock.at += self.delays(self.count, token)
                yield from range(work.batch_size)

        return watch(begin, work.batch_size, self.clock)

    def probe(self) -> dict[str, Any]:
        return {"read_gb_per_second": 20.0, "copy_gb_per_second": 18.0, "matrix_gflops": {"float32": 90.0, "bfloat16": 120.0}}

    def profile(self, work: Work) -> dict[str, Any]:
        return PROFILE

    def close(self) -> None:
        self.closed = True


def artifact(**changes: Any) -> Any:
    """What a report takes of an artefact."""
    manifest = {"source": "f" * 64, "digest": "d" * 64, "family": "glm4", "dtype": "bfloat16", "quant": None, "target": "cpu",
                "engine": "native", "bounds": {"max_len": 512, "max_batch": 4}, "dims": {"layers": 2}, "glmc": "0.1.0",
                "torch": "2.13.0", **changes}
    proofs = {"proofs": [{"places": 3, "kernel_error": 1e-3, "reference_error": 2e-3}]}
    files = {"ledger.json": {"ledger": LEDGER}, "proofs.json": proofs}
    return SimpleNamespace(manifest=manifest, files=files, folder=Path("model.glmc"), json=files.__getitem__)


def ran(delays: dict[str, Delays], works: tuple[Work, ...] = (WORK,), num_iters: int = 10, opening: Any = None, warmup: int = 1,
        ) -> tuple[Measured, list[Contender], list[str]]:
    """A measurement of contenders by their delays, the first the artefact; who was asked, in order."""
    clock, asked = Clock(), []
    contenders = [Contender(name, "artifact" if name == next(iter(delays)) else "eager") for name in delays]

    def opened(contender: Contender, threads: int) -> Any:
        return Planted(contender, clock, delays.get(contender.name, steady), asked)

    found = measure(contenders, works, num_iters, warmup, 2, cold_starts=2, opening=opening or opened)
    return found, contenders, asked


def reported(delays: dict[str, Delays], works: tuple[Work, ...] = (WORK,), num_iters: int = 10, **changes: Any,
             ) -> dict[str, Any]:
    """The report of such a measurement, of a machine that was left alone."""
    found, contenders, _ = ran(delays, works, num_iters)
    found.foreign = [0.01] * len(found.foreign)
    return report(artifact(**changes), works, found, "glmc bench model.glmc", contenders)


def noisy(seed: int, scale: float = 1.0) -> Delays:
    """Delays as of a real machine: a run's own luck, rounds that drift and spread, tokens that spread, outliers of both."""
    draw = random.Random(seed)
    luck, phase = math.exp(draw.gauss(0, 0.004)), draw.uniform(0, 2 * math.pi)
    rounds: dict[int, float] = {}

    def delay(request: int, token: int) -> float:
        if request not in rounds:
            slow = draw.uniform(1.2, 3) if draw.random() < 0.06 else 1.0
            rounds[request] = slow * (1 + 0.01 * math.sin(phase + request / 10)) * math.exp(abs(draw.gauss(0, 0.015)))
        spike = draw.uniform(1.5, 5) if draw.random() < 0.02 else 1.0
        return scale * luck * rounds[request] * spike * math.exp(abs(draw.gauss(0, 0.03))) * steady(request, token)

    return delay


def rows(*events: tuple[float, ...]) -> Sample:
    return Sample(tuple(Row(times, len(times)) for times in events))
