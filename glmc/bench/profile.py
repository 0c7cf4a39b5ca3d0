"""Where the time of one step goes: each call of each region, timed in place, as tables and as a line of time.

native: the library adds up what its first thread sees of each call. Others: the clock is read after each line of a region's
text, or after each region where its code is one compiled piece; a device that works by itself is waited for each time.
"""

from __future__ import annotations

import ast
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from glmc.bench.work import Work
from glmc.native.calls import Weight
from glmc.region import REPLACED, Bound
from glmc.runtime.by_region import ByRegion
from glmc.runtime.whole import Whole

if TYPE_CHECKING:
    from glmc.native.executor import Item
    from glmc.runtime.session import Model

DECODE_STEPS, PREFILLS = 24, 5


@dataclass(frozen=True)
class Place:
    """One call's place in a step. op: the line of the region's text, or the kernel with its weight. kernel: what ran."""

    region: str
    op: str
    kernel: str


Step = list[tuple[Place, float]]
"""Calls in order, each with its seconds."""


def profile(model: Model, work: Work) -> dict[str, Any]:
    """A prompt of `work.input_len` tokens and decode steps behind it, of one row."""
    (ids,) = Work(work.input_len, 2).prompts(model.dims["vocabulary"])
    taking = _taking(model)
    positions = torch.tensor([[len(ids)]])
    token = torch.tensor([[ids[-1]]])
    model.take_cache()
    prefills = [taking(lambda: model.extend(0, ids, 0)) for _ in range(PREFILLS + 1)][1:]
    steps = [taking(lambda: model.advance(token, positions.clamp(max=model.max_len - 1))) for _ in range(DECODE_STEPS + 2)][2:]
    return {"engine": model.artifact.manifest["engine"],
            "steps": [told("decode", 1, len(ids), steps), told("prefill", len(ids), 0, prefills)]}


def told(name: str, tokens: int, context: int, taken: Sequence[tuple[Step, float]]) -> dict[str, Any]:
    """Steps of the same calls as JSON: each call's mean over the middle half of the steps, by region, kernel and op."""
    ordered = sorted(taken, key=lambda one: sum(seconds for _, seconds in one[0]))
    kept = ordered[len(ordered) // 4:len(ordered) - len(ordered) // 4]
    places = [place for place, _ in kept[0][0]]
    means = [statistics.fmean(step[i][1] for step, _ in kept) * 1e6 for i in range(len(places))]
    whole = sum(means) or 1.0

    def grouped(keys: Sequence[str]) -> list[dict[str, Any]]:
        found: dict[tuple[str, ...], list[float]] = {}
        for place, us in zip(places, means, strict=True):
            found.setdefault(tuple(getattr(place, key) for key in keys), []).append(us)
        rows = [{**dict(zip(keys, key, strict=True)), "calls": len(us), "us": round(sum(us), 3),
                 "share": round(sum(us) / whole, 5)} for key, us in found.items()]
        return sorted(rows, key=lambda row: -row["us"])

    ops = grouped(("region", "op", "kernel"))
    number = {(row["region"], row["op"], row["kernel"]): i for i, row in enumerate(ops)}
    return {"name": name, "tokens": tokens, "context": context, "samples": len(taken),
            "us": round(statistics.fmean(seconds for _, seconds in kept) * 1e6, 3), "inside_us": round(sum(means), 3),
            "regions": grouped(("region",)), "kernels": grouped(("region", "kernel")), "ops": ops,
            "timeline": [[number[place.region, place.op, place.kernel], round(us, 3)]
                         for place, us in zip(places, means, strict=True)]}


def _taking(model: Model) -> Callable[[Callable[[], Any]], tuple[Step, float]]:
    if isinstance(model.runner, Whole):
        return _native(model.runner)
    if isinstance(model.runner, ByRegion):
        return _by_region(model, model.runner)
    engine = model.artifact.manifest["engine"]

    def taking(run: Callable[[], Any]) -> tuple[Step, float]:
        """Of an engine that runs the model as one, a step is one call."""
        began = time.perf_counter()
        run()
        seconds = time.perf_counter() - began
        return [(Place("model", "model", engine), seconds)], seconds

    return taking


def _native(runner: Whole) -> Callable[[Callable[[], Any]], tuple[Step, float]]:
    items = runner.executor.items
    places = [Place(item.region, _op(item), item.call.kernel) for item in items]
    total = runner.executor.profile()

    def taking(run: Callable[[], Any]) -> tuple[Step, float]:
        total.zero_()
        began = time.perf_counter()
        run()
        seconds = time.perf_counter() - began
        return list(zip(places, total.tolist(), strict=True)), seconds

    return taking


def _op(item: Item) -> str:
    weights = [operand.name for operand in item.call.p if isinstance(operand, Weight)]
    return f"{item.call.kernel}({', '.join(weights)})"


def _by_region(model: Model, runner: ByRegion) -> Callable[[Callable[[], Any]], tuple[Step, float]]:
    device, lines = model.device, model.artifact.manifest["engine"] == "fx"
    runner.decoder = None  # a recorded step is one piece, in which no line can be timed
    noted: Step = []

    def settled() -> float:
        if device.torch.type != "cpu":
            getattr(torch, device.torch.type).synchronize()
        return time.perf_counter()

    def whole(name: str, call: Callable) -> Callable:
        def timed(inputs: list[torch.Tensor]) -> Any:
            began = settled()
            made = call(inputs)
            noted.append((Place(name, name, model.artifact.manifest["engine"]), settled() - began))
            return made

        return timed

    def by_line(name: str) -> Callable:
        bound = Bound(model.program.regions[name], device.kernels, str(device.torch))
        ops = _ops(bound.region.body, REPLACED.get(device.kernels, {}))

        def timed(inputs: list[torch.Tensor]) -> Any:
            with device.calling():
                going, before = bound.lines(*inputs), settled()
                while True:
                    try:
                        line, _ = next(going)
                    except StopIteration as end:
                        return end.value
                    after = settled()
                    noted.append((Place(name, line, ops[line]), after - before))
                    before = after

        return timed

    runner.steps.calls = {form: {name: by_line(name) if lines else whole(name, call) for name, call in calls.items()}
                          for form, calls in runner.steps.calls.items()}

    def taking(run: Callable[[], Any]) -> tuple[Step, float]:
        noted.clear()
        began = settled()
        run()
        seconds = settled() - began
        return list(noted), seconds

    return taking


def _ops(body: Sequence[str], replaced: dict[str, str]) -> dict[str, str]:
    """Each line's name -> the op that it calls, as the machine at hand runs it."""
    found = {}
    for text in body[:-1]:
        match ast.parse(text).body[0]:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(func=func)):
                op = ast.unparse(func)
                found[name] = replaced.get(op, op)
    return found
