"""`glmc plan` on the 92-layer GLM-4.5 configuration in a fresh process: seconds, memory, regions, promises kept."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import fresh_process
from measure import summary
from report import ROOT, Report, default_out

SECONDS, BYTES, REGIONS = 60.0, 2.0, 6
HOW = ("`python -m glmc plan CONFIG --json`, each round in a fresh process, imports included; memory is ru_maxrss "
       "from wait4, in GB of 1e9 bytes; the figures are the worst of the rounds")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--config", type=Path, default=ROOT / "tests" / "data" / "glm-4.5.json")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--out", type=Path, default=default_out("plan_large"))
    given = options.parse_args()
    report = Report("plan_large", given.out)
    runs = [fresh_process.run(fresh_process.python("-m", "glmc", "plan", given.config, "--json"))
            for _ in range(given.rounds)]
    answer = json.loads(runs[-1].output)
    rows = [{k: row[k] for k in ("fusion", "expected", "proved", "taken")} for row in answer["ledger"]]
    kept = sum(row["expected"] == row["proved"] for row in rows)
    report.add("wall time", max(r.seconds for r in runs), "s", SECONDS)
    report.add("peak memory", max(r.peak_bytes for r in runs) / 1e9, "GB", BYTES)
    report.add("distinct regions", answer["regions"]["distinct"], "", REGIONS)
    report.add("fusions with every promised site proved", kept, f"of {len(rows)}", len(rows), "equal")
    report.finish(HOW, {
        "config": given.config.name, "layers": answer["layers"], "parameters": answer["parameters"],
        "regions": answer["regions"], "ledger": rows, "wall_seconds": summary([r.seconds for r in runs], 2),
        "peak_bytes": [r.peak_bytes for r in runs], "seconds_inside": answer["seconds"]})


if __name__ == "__main__":
    main()
