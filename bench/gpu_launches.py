"""What a decode step of a model starts on a GPU: launches of our kernels and steps of torch's, line by line and joined.

Needs no GPU.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from unittest import mock

import torch
from report import Report, default_out
from torch.utils._python_dispatch import TorchDispatchMode

from glmc.kernels import triton
from glmc.passes.lower import Bounds, sample
from glmc.program import Program, Region
from glmc.region import Bound
from glmc.survey import survey
from glmc.target import TARGETS

NOTHING = frozenset("""_unsafe_view alias as_strided detach empty empty_like empty_strided expand new_empty permute select slice
split split_with_sizes squeeze t transpose unbind unsqueeze view""".split())
"""aten's ops that start nothing on a device."""
HOW = ("every region runs once on meta tensors with one token a row and slots enough; launches of our kernels are noted and "
       "torch's ops that do work are counted, each as one launch; times how often a step calls the region")
SLOTS = 4096


class Steps(TorchDispatchMode):
    """Counts the ops that would start something."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if name not in NOTHING:
            self.counts[f"torch {name}"] += 1
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def launches(region: Region, by_line: bool, rows: int) -> Counter[str]:
    """What a call of the region starts, by name."""
    counts: Counter[str] = Counter()
    asked = triton._asked

    def counting(kernel, *rest):
        counts[kernel.fn.__name__] += 1
        return asked(kernel, *rest)

    with mock.patch.object(triton, "_asked", counting), triton.noted(), torch.device("meta"):
        bound = Bound(region, "triton", "meta", by_line=by_line)
        inputs = [sample(spec, role, {"B": rows, "S": 1, "L": SLOTS, "M": 2}, Bounds(rows, SLOTS))
                  for _, role, spec in region.inputs]
        with Steps() as steps:
            bound(*inputs)
    return counts + steps.counts


def of_a_step(program: Program, by_line: bool, rows: int) -> Counter[str]:
    """What a decode step starts."""
    calls = Counter(step.region for step in program.steps if not step.moves)
    total: Counter[str] = Counter()
    for name, region in program.regions.items():
        total.update({what: count * calls[name] for what, count in launches(region, by_line, rows).items()})
    return total


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("configs", nargs="+", type=Path)
    options.add_argument("--rows", type=int, default=1)
    options.add_argument("--out", type=Path, default=default_out("gpu/launches"))
    given = options.parse_args()
    report, details = Report("gpu_launches", given.out), {}
    for config in given.configs:
        program = survey(config, TARGETS["cuda:sm_90"], "bfloat16").program
        before, after = (of_a_step(program, by_line, given.rows) for by_line in (True, False))
        report.add(f"{config.stem}, line by line", before.total(), "launches a step")
        report.add(f"{config.stem}, joined", after.total(), "launches a step")
        details[config.stem] = {what: [before[what], after[what]] for what in sorted(before | after)}
        report.finish(HOW, details)


if __name__ == "__main__":
    main()
