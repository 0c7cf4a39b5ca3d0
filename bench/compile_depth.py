"""Compiling deep costs what compiling shallow costs: the same width at 8 and at 48 layers, nothing cached."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from checkpoints import DENSE
from compile_once import in_fresh_process, random_model
from measure import interleave, summary
from report import Report, default_out

BAR = 1.2
HOW = ("glm4 of one width and two depths with random weights, target cpu:aoti; each compilation in a fresh process "
       "without GLMC_CACHE and with an empty Inductor cache, depths taking turns; `regions` is the time between the "
       "first and the last report of the stage `compile regions`; ratios are of medians")


def width(hidden: int) -> dict[str, Any]:
    """A dense configuration of this hidden size, without its depth."""
    return {**DENSE, "hidden_size": hidden, "num_attention_heads": hidden // 32, "num_key_value_heads": 2,
            "head_dim": 32, "intermediate_size": 2 * hidden, "vocab_size": 1000}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--layers", type=int, nargs=2, default=[8, 48], metavar=("FEW", "MANY"))
    options.add_argument("--hidden", type=int, default=256, help="a multiple of 64")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--out", type=Path, default=default_out("compile_depth"))
    given = options.parse_args()
    report = Report("compile_depth", given.out)
    runs: dict[int, list[dict[str, Any]]] = {depth: [] for depth in given.layers}
    with tempfile.TemporaryDirectory(prefix="glmc-bench-") as scratch:
        folders = {d: Path(scratch) / f"layers-{d}" for d in given.layers}
        for depth, folder in folders.items():
            random_model(folder, {**width(given.hidden), "num_hidden_layers": depth})

        def compile_at(depth: int) -> float:
            out = folders[depth] / f"{len(runs[depth])}.glmc"
            made, _ = in_fresh_process(folders[depth] / "checkpoint", out, "cpu:aoti", cached=False)
            runs[depth].append(made)
            return made["stages"]["compile regions"]

        # Nothing is kept between compilations, so there is nothing to warm but the page cache; writing did that.
        interleave({str(d): lambda d=d: compile_at(d) for d in given.layers}, given.rounds, warm=0)
    few, many = given.layers
    taken = {
        "regions": {d: [r["stages"]["compile regions"] for r in runs[d]] for d in runs},
        "whole": {d: [r["seconds"] for r in runs[d]] for d in runs},
        "trace": {d: [r["survey_seconds"]["trace"] for r in runs[d]] for d in runs}}
    middle = {what: {d: statistics.median(v) for d, v in by.items()} for what, by in taken.items()}
    report.add("region compilation, deep over shallow", middle["regions"][many] / middle["regions"][few], "x", BAR)
    report.add("whole compilation, deep over shallow", middle["whole"][many] / middle["whole"][few], "x")
    for what in taken:
        for depth in given.layers:
            report.add(f"{what}, {depth} layers", middle[what][depth], "s")
    report.finish(HOW, {
        "hidden": given.hidden, "regions": {d: runs[d][0]["regions"] for d in runs},
        "libraries": {d: runs[d][0]["libraries"] for d in runs},
        "seconds": {what: {d: summary(v, 2) for d, v in by.items()} for what, by in taken.items()},
        "stages": {d: runs[d][-1]["stages"] for d in runs}, "survey": {d: runs[d][-1]["survey_seconds"] for d in runs}})


if __name__ == "__main__":
    main()
