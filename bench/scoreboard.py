"""`glmc plan` of every class at full published depth: sites expected and proved, seconds, memory; and a bare trace beside it.

Each plan and each bare trace runs in a fresh process. With --readme the table goes into README.md, between its markers.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import fresh_process
from report import ROOT, Report, default_out

SECONDS, BYTES, RATIO = 90.0, 3.0, 1.3
HOW = ("`python -m glmc plan CONFIG --json` in a fresh process, imports included; memory is ru_maxrss from wait4, in GB of 1e9 "
       "bytes. The bare trace builds the same published model and traces its parts, in a process of its own, and does no more.")
FUSIONS = ("rope", "rope_table", "rms_norm", "layer_norm", "add_rms_norm", "qk_norm_rope", "split_qkv_norm_rope", "attention",
           "silu_mul", "moe_route", "moe_experts")
BEGIN, END = "<!-- scoreboard -->", "<!-- /scoreboard -->"


def bare_trace(config: Path) -> None:
    """Build and trace every part of one model, and print nothing."""
    import torch

    from glmc.checkpoint.folder import read_config
    from glmc.survey import parts_of
    from glmc.trace import trace

    for part in parts_of(read_config(config), torch.bfloat16)[1]:
        trace(part.module, part.args, part.dynamic)


def planned(config: Path) -> dict[str, Any]:
    """One model's row: the ledger's counts, seconds and bytes."""
    run = fresh_process.run(fresh_process.python("-m", "glmc", "plan", config, "--json"))
    answer = run.json()
    counts = {row["fusion"]: [row["expected"], row["proved"]] for row in answer["ledger"]}
    return {"model": config.stem, "family": answer["model_type"], "layers": answer["layers"], "seconds": round(run.seconds, 1),
            "peak_bytes": run.peak_bytes, "regions": answer["regions"], "sites": counts, "notes": answer["notes"]}


def cell(counts: list[int] | None) -> str:
    """"92" where every expected site was proved, "90 of 92" where not, nothing where there are none."""
    expected, proved = counts or [0, 0]
    return "" if not expected and not proved else str(proved) if proved == expected else f"{proved} of {expected}"


def table(rows: list[dict[str, Any]]) -> str:
    """The Markdown table: a line a model, a column a fusion."""
    lines = ["| model | family | " + " | ".join(f"`{f}`" for f in FUSIONS) + " | s | GB |",
             "| --- | --- |" + " ---: |" * (len(FUSIONS) + 2)]
    for row in rows:
        cells = [cell(row["sites"].get(f)) for f in FUSIONS]
        lines.append(f"| {row['model']} | `{row['family']}` | " + " | ".join(cells)
                     + f" | {row['seconds']:.0f} | {row['peak_bytes'] / 1e9:.2f} |")
    return "\n".join(lines)


def into_readme(text: str) -> None:
    """Put the table between the README's markers."""
    readme = ROOT / "README.md"
    before = readme.read_text()
    after = re.sub(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: f"{BEGIN}\n\n{text}\n\n{END}", before, flags=re.S)
    readme.write_text(after)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("configs", type=Path, nargs="*", help="config.json files; all of bench/configs if none")
    options.add_argument("--bare", type=Path, help="only build and trace this model")
    options.add_argument("--against", default="glm-4.5", help="the model whose plan is compared with its bare trace")
    options.add_argument("--rounds", type=int, default=3, help="rounds of that comparison")
    options.add_argument("--readme", action="store_true")
    options.add_argument("--out", type=Path, default=default_out("scoreboard"))
    given = options.parse_args()
    if given.bare:
        return bare_trace(given.bare)
    report = Report("scoreboard", given.out)
    configs = given.configs or sorted((ROOT / "bench" / "configs").glob("*.json"))
    rows = []
    for config in configs:
        rows.append(planned(config))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    report.add("slowest plan", max(r["seconds"] for r in rows), "s", SECONDS)
    report.add("largest plan", max(r["peak_bytes"] for r in rows) / 1e9, "GB", BYTES)
    short = sum(e != p for r in rows for e, p in r["sites"].values())
    report.add("fusions of a model with other sites proved than expected", short, f"of {sum(len(r['sites']) for r in rows)}",
               0, "equal")
    against = next((c for c in configs if c.stem == given.against), None)
    pairs = []
    for _ in range(given.rounds if against else 0):
        bare = fresh_process.run(fresh_process.python(__file__, "--bare", against)).seconds
        pairs.append([fresh_process.run(fresh_process.python("-m", "glmc", "plan", against, "--json")).seconds, bare])
    if pairs:
        ratios = sorted(whole / bare for whole, bare in pairs)
        report.add(f"whole plan of {given.against} over its bare trace, median of {len(pairs)}", ratios[len(ratios) // 2],
                   "times", RATIO)
    report.finish(HOW, {"models": rows, "plan_and_bare_seconds": pairs})
    print("\n" + table(rows))
    if given.readme:
        into_readme(table(rows))


if __name__ == "__main__":
    main()
