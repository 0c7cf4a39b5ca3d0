"""Products with quantised matrices on a GPU at GLM-4.5-Air's sizes, beside the same products in bfloat16."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gpu_clock
import torch
from measure import summary
from report import Report, default_out

from glmc import kernels
from glmc.kernels.dequantise import GROUPS, Coded, stored
from glmc.kernels.timing import microseconds

QKV, GATE_UP, DOWN, TOP = (14336, 4096), (128, 2816, 4096), (128, 4096, 1408), 8
FASTER = {"MX4": 1.5, "F8": 1.2, "NV4": 1.5}
HOW = ("microseconds a call in device graphs, medians of 15 replays; matrices and chosen experts change from call to call, so "
       "that they come from memory. Weights are random codes. Over bfloat16: the same op with bfloat16 weights in the same run")


def coded(form: str, sizes: tuple[int, ...]) -> Coded | torch.Tensor:
    """A random matrix in a form, or in bfloat16."""
    if form not in GROUPS:
        return torch.empty(sizes, dtype=torch.bfloat16, device="cuda").normal_(0, sizes[-1] ** -0.5)
    made = Coded.of(form, sizes, torch.empty(stored(form, sizes)[1], dtype=torch.uint8, device="cuda").random_(0, 120))
    made.scales.fill_({"MX4": 121, "F8": 0.01, "NV4": 56}[form])
    if made.factors is not None:
        made.factors.fill_(0.01)
    return made


def linears(form: str, rows: int) -> Iterator[Callable[[], Any]]:
    x = torch.randn(rows, QKV[1], dtype=torch.bfloat16, device="cuda")
    for _ in range(4):
        yield partial(kernels.load("linear", "triton").run, x, coded(form, QKV))


def experts(form: str, rows: int) -> Iterator[Callable[[], Any]]:
    gate_up, down = coded(form, GATE_UP), coded(form, DOWN)
    for seed in range(4):
        draw = torch.Generator().manual_seed(seed)
        chosen = torch.stack([torch.randperm(GATE_UP[0], generator=draw)[:TOP] for _ in range(rows)]).cuda()
        shares = torch.full((rows, TOP), 1 / TOP, device="cuda")
        x = torch.randn(rows, GATE_UP[2], dtype=torch.bfloat16, device="cuda")
        yield partial(kernels.load("moe_experts", "triton").run, x, chosen, shares, gate_up, down)


@torch.no_grad()
def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", default="1,8,64")
    options.add_argument("--forms", default="MX4,F8")
    options.add_argument("--out", type=Path, default=default_out("gpu/coded"))
    given = options.parse_args()
    report = Report("gpu_coded", given.out)
    details: dict[str, Any] = {"device": gpu_clock.device(), "us": {}}
    for name, calls in (("qkv projection", linears), ("routed experts", experts)):
        for rows in map(int, given.rows.split(",")):
            samples = {form: microseconds(list(calls(form, rows))) for form in ("bfloat16", *given.forms.split(","))}
            details["us"][f"{name}, {rows} rows"] = {form: summary(found, 2) for form, found in samples.items()}
            medians = {form: statistics.median(found) for form, found in samples.items()}
            for form in given.forms.split(","):
                report.add(f"{name}, {rows} rows, {form} over bfloat16", medians["bfloat16"] / medians[form], "x", FASTER[form],
                           "higher")
    report.finish(HOW, details)


if __name__ == "__main__":
    main()
