"""Products of few rows that do what follows them in their launch, on a GPU: beside a launch for each, beside torch's steps."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gpu_clock
import torch
from gpu_cases import rand
from measure import summary
from report import Report, default_out
from torch.nn import functional

from glmc import kernels
from glmc.kernels.timing import microseconds

NEVER = 1.0
FOLLOWED = {"GLM-4-9B gate and up": (27392, 4096, 0), "GLM-4-9B down and a sum": (4096, 13696, 1),
            "GLM-4.5-Air shared gate and up": (2816, 4096, 0), "GLM-4.5-Air shared down and two sums": (4096, 1408, 2)}
"""Product and what follows it: outputs, inputs, and the terms added; of none the halves are gate and up."""
HOW = ("microseconds a call in device graphs, medians of 15 replays; the matrix changes from call to call, so that it comes "
       "from memory. bfloat16")


def after(product: Callable[..., torch.Tensor], join: Callable[..., torch.Tensor], x: torch.Tensor, weight: torch.Tensor,
          terms: list[torch.Tensor]) -> torch.Tensor:
    """The product and, in launches of their own, what follows it: sums, or where there are no terms gate and up."""
    made = product(x, weight)
    return sum(terms, made) if terms else join(*made.chunk(2, -1))


def ways(outputs: int, inputs: int, count: int, rows: int) -> dict[str, list[Callable[[], torch.Tensor]]]:
    """Name -> calls over other matrices each, together more than the cache holds."""
    run, join = (kernels.load(op, "triton").run for op in ("linear", "silu_mul"))
    steps = functional.linear, lambda gate, up: functional.silu(gate) * up
    weights = [rand(outputs, inputs) * inputs ** -0.5 for _ in range(min(64, max(4, (1 << 28) // (outputs * inputs))))]
    x, terms = rand(rows, inputs), [rand(rows, outputs) for _ in range(count)]
    return {"one launch": [partial(run, x, w, None, terms, gated=not terms) for w in weights],
            "a launch each": [partial(after, run, join, x, w, terms) for w in weights],
            "torch": [partial(after, *steps, x, w, terms) for w in weights]}


@torch.no_grad()
def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", default="1,8")
    options.add_argument("--out", type=Path, default=default_out("gpu/followed"))
    given = options.parse_args()
    report = Report("gpu_followed", given.out)
    details: dict[str, Any] = {"device": gpu_clock.device(), "us": {}}
    for name, sizes in FOLLOWED.items():
        for rows in map(int, given.rows.split(",")):
            found = {way: microseconds(calls) for way, calls in ways(*sizes, rows).items()}
            details["us"][f"{name}, {rows} rows"] = {way: summary(us, 2) for way, us in found.items()}
            for way in ("a launch each", "torch"):
                report.add(f"{name}, {rows} rows, over {way}",
                           statistics.median(found[way]) / statistics.median(found["one launch"]), "x", NEVER, "higher")
    report.finish(HOW, details)


if __name__ == "__main__":
    main()
