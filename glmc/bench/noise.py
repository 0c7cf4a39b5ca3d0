"""What disturbed a measurement, in sentences: others' load, an unsteady machine, wide or drifting samples, too few of them."""

from __future__ import annotations

from typing import Any

from glmc.bench.other_load import QUIET
from glmc.bench.probe import STEADY
from glmc.bench.statistics import LEVEL

DRIFT, SPREAD = 0.03, 0.05


def noise(report: dict[str, Any]) -> dict[str, Any]:
    """quiet: whether nothing was noticed, None where the system tells nothing of others. said: a sentence a disturbance."""
    said: list[str] = []
    load = report["load"]
    middle = load["foreign_cpu_share_median"]
    if middle is None:
        said.append("the system does not tell what others did on these cores")
    elif middle > QUIET:
        said.append(f"others had {middle:.0%} of the cores in the middle round and {load['foreign_cpu_share_max']:.0%} at "
                    "most: these are figures of a busy machine")
    for one in report["contenders"]:
        counted, asked = (one["facts"] or {}).get("prompt_tokens"), {each["input_len"] for each in report["work"]["requests"]}
        if counted is not None and counted not in asked:
            said.append(f"{one['name']} counted {counted} tokens in its last prompt, which were to be {max(asked)}")
    for name, values in (("read bandwidth", [p["read_gb_per_second"] for p in report["probes"]]),
                         ("matrix rate", [max(p["matrix_gflops"].values()) for p in report["probes"]])):
        if values and max(values) - min(values) > STEADY * max(values):
            said.append(f"the probed {name} lay between {min(values):g} and {max(values):g}: the machine was not left alone")
    few = {one["rounds_kept"]: one["metrics"]["ttft"]["level"] for one in report["results"]}
    said += [f"the intervals of {kept} rounds are sure to {sure:.0%} only" for kept, sure in few.items() if sure < LEVEL]
    for one in report["results"]:
        who = f"{one['contender']} {one['test']}"
        known = {metric: found for metric, found in one["metrics"].items() if found}
        if moved := [f"{metric} {found['drift']:+.1%}" for metric, found in known.items() if abs(found["drift"]) > DRIFT]:
            said.append(f"{who}: drifted from the first half of the rounds to the second: {', '.join(moved)}")
        if wide := [f"{metric} {found['spread']:.1%}" for metric, found in known.items() if found["spread"] > SPREAD]:
            said.append(f"{who}: the middle half of the rounds spreads over this much of the median: {', '.join(wide)}")
    return {"quiet": None if middle is None and len(said) == 1 else not said, "said": said}
