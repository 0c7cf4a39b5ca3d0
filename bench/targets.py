"""What every target takes of every class at full published depth: sites taken, and the reasons of those it refuses.

Each model is traced and searched once, in a process of its own; every target then decides on the same sites.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import fresh_process
from report import ROOT, Report, default_out

HOW = ("each model is traced and searched once in a process of its own, in bfloat16; `choose` then decides for each "
       "target as `glmc plan --target` does. A site is taken, or refused with a reason; sites inside a larger taken one are "
       "refused for sharing its steps. An attention layer is a `split_qkv_norm_rope` site, or with latents an `attention` site")
OURS = ("cpu", "cuda:sm_90", "npu:ascend910b")


def decisions(config: Path) -> None:
    """Print, for one model, target -> fusion -> proved, taken, and reasons with their number."""
    import torch

    from glmc.checkpoint.folder import read_config
    from glmc.passes.choose import choose
    from glmc.sites import find_sites
    from glmc.survey import parts_of
    from glmc.target import TARGETS
    from glmc.trace import trace, uncollected
    from glmc.trail import Trail

    with uncollected():
        found = []
        for part in parts_of(read_config(config), torch.bfloat16)[1]:
            traced = trace(part.module, part.args, part.dynamic)
            found.append((traced.graph, find_sites(traced, Trail()).sites))
    said: dict[str, Any] = {}
    for name, target in TARGETS.items():
        rows: dict[str, Any] = {}
        for graph, sites in found:
            for decision in choose(sites, graph, target):
                row = rows.setdefault(decision.site.fusion, {"proved": 0, "taken": 0, "refused": Counter()})
                row["proved"] += 1
                if decision.reason is None:
                    row["taken"] += 1
                else:
                    row["refused"][re.sub(r"\b(layers?|blocks)\.\d+(\.[\w.]+)?", r"\1.N", decision.reason)] += 1
        said[name] = rows
    print(json.dumps(said))


def table(models: dict[str, Any]) -> str:
    """A line a model: for each of OURS, taken of proved of the large fusions."""
    large = ("split_qkv_norm_rope", "attention", "moe_route", "moe_experts")
    lines = ["| model | " + " | ".join(f"{t}: " + ", ".join(f"`{f}`" for f in large) for t in OURS) + " |",
             "| --- |" + " --- |" * len(OURS)]
    for model, targets in models.items():
        cells = []
        for target in OURS:
            rows = targets[target]
            cells.append(", ".join(f"{rows[f]['taken']} of {rows[f]['proved']}" if f in rows else "-" for f in large))
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("configs", type=Path, nargs="*", help="config.json files; all of bench/configs if none")
    options.add_argument("--one", type=Path, help="only decide for this model, and print it")
    options.add_argument("--out", type=Path, default=default_out("targets"))
    given = options.parse_args()
    if given.one:
        return decisions(given.one)
    report, models = Report("targets", given.out), {}
    for config in given.configs or sorted((ROOT / "bench" / "configs").glob("*.json")):
        models[config.stem] = fresh_process.run(fresh_process.python(__file__, "--one", config)).json()
        print(config.stem, file=sys.stderr, flush=True)
    silent = sum(row["proved"] != row["taken"] + sum(row["refused"].values())
                 for targets in models.values() for rows in targets.values() for row in rows.values())
    report.add("fusions of a model and target with a site neither taken nor refused with a reason", silent, "", 0, "equal")
    for model in ("glm-4.5", "glm-4.5-air"):
        rows = models.get(model, {}).get("npu:ascend910b", {}).get("split_qkv_norm_rope")
        if rows:
            report.add(f"attention layers of {model} on the NPU's fused op", rows["taken"], f"of {rows['proved']}",
                       rows["proved"], "equal")
    report.finish(HOW, {"models": models})
    print("\n" + table(models))


if __name__ == "__main__":
    main()
