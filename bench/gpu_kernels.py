"""Each GPU kernel as a share of a measured copy, and beside what torch, Inductor and Liger make of the same steps."""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gpu_clock
import torch
from gpu_cases import MOVING, OTHERS, Case, liger, splits
from measure import summary
from report import Report, default_out

from glmc.kernels.timing import microseconds
from glmc.passes import declare

SHARE, DECODE, NEVER = 0.85, 1.2, 1.0
HOW = ("microseconds a call, from device graphs that hold several calls over other memory each; medians of 15 replays. Share: "
       "bytes that must be read and written once, over the time, over the fastest of torch's copies of 64 MB, 256 MB and 1 GB "
       "in the same run. torch: the plain steps one by one, attention and the experts' products as torch's own. Inductor: "
       "torch.compile of the fusion's reference, static shapes, in the same graphs. Liger: its kernels of the same maths; its "
       "RoPE also turns one key head, and in place. bfloat16")


def timed(call: Callable[..., Any], sets: list[list[torch.Tensor | None]]) -> list[float]:
    return microseconds([functools.partial(call, *given) for given in sets])


def inductor(case: Case) -> Callable[..., Any]:
    """What Inductor makes of the reference at these very sizes."""
    torch._dynamo.reset()
    reference = functools.partial(declare.load(case.fusion).reference, **case.scalars)
    return torch.compile(reference, fullgraph=True, dynamic=False)


def compared(report: Report, details: dict[str, Any], case: Case, title: str, others: dict[str, Callable[..., Any]],
             copy: float, bars: dict[str, float | None]) -> None:
    """One case: ours as a share of a copy where `bars` has one, and over each of the others; what fails has its reason in the
    details."""
    entry: dict[str, Any] = {"bytes": case.moved}
    details["cases"][title] = entry
    try:
        sets = case.sets()
        ours = timed(case.run, sets)
    except Exception as fault:
        entry["failed"] = f"{type(fault).__name__}: {fault}"[:300]
        report.add(f"{title}: failed", 1, "", 0, "equal")
        return
    entry["ours"] = summary(ours, 2)
    share = case.moved / statistics.median(ours) * 1e6 / copy
    if "a copy" in bars:
        report.add(title, share, "of a copy", bars["a copy"], "higher")
    for name, call in others.items():
        try:
            theirs = timed(call, sets)
        except Exception as fault:  # such as memory that the plain steps want and the kernel does not
            entry[name] = {"failed": f"{type(fault).__name__}: {fault}"[:300]}
            torch.cuda.empty_cache()
            continue
        entry[name] = summary(theirs, 2)
        report.add(f"{title}, over {name}", statistics.median(theirs) / statistics.median(ours), "x", bars.get(name, NEVER),
                   "higher")


def plan(tokens: list[int], buckets: list[int], groups: set[str], with_liger: bool,
         ) -> Iterator[tuple[str, Case, dict[str, Callable[..., Any]], dict[str, float | None]]]:
    """What is timed, the cheap and the barred first: title, case, others, bars."""
    for count in buckets if "inductor" in groups else ():
        for case in splits(count):
            yield (f"{case.name}, {count} tokens", case, {"Inductor": inductor(case)},
                   {"Inductor": DECODE if count <= 64 else NEVER})
    for count in tokens:
        for group in MOVING.keys() & groups:
            for case in MOVING[group](count):
                other = liger(case) if with_liger else None
                yield (f"{case.name}, {count} tokens", case, {"Liger": other} if other else {}, {"a copy": SHARE})
    for group, made in OTHERS.items():
        for case in made() if group in groups else ():
            yield case.name, case, {"torch": case.steps}, {"a copy": None}


@torch.no_grad()
def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tokens", default="8192,65536", help="where kernels are held against a copy")
    options.add_argument("--buckets", default="1,8,64,512,8192", help="where they are held against Inductor")
    options.add_argument("--groups", default=",".join(("inductor", *MOVING, *OTHERS)))
    options.add_argument("--no-liger", action="store_true")
    options.add_argument("--out", type=Path, default=default_out("gpu/kernels"))
    given = options.parse_args()
    report = Report("gpu_kernels", given.out)
    copies = gpu_clock.copy_bandwidth()
    copy = max(copies.values())
    report.add("copy", copy / 1e9, "GB/s")
    details: dict[str, Any] = {"device": gpu_clock.device(), "copies": copies, "cases": {}}
    sizes = [list(map(int, text.split(","))) for text in (given.tokens, given.buckets)]
    for title, case, others, bars in plan(*sizes, set(given.groups.split(",")), not given.no_liger):
        compared(report, details, case, title, others, copy, bars)
        report.write(HOW, details)  # what is known is not lost to what takes long
        torch.cuda.empty_cache()
    report.finish(HOW, details)


if __name__ == "__main__":
    main()
