"""Decoding, prefill and batches on a CPU: glmc beside its peers, each a process of its own, taking turns.

    python bench/cpu.py --peers PEERS.json [--only bfloat16] [--loads decode-64,prefill-256] [--out FILE]

PEERS.json: {"groups": {"dense bfloat16": {"bytes_per_token": N, "kv_bytes_per_slot": N, "parameters_per_token": N,
"contenders": {"glmc": [COMMAND...], ...}}}}, each command a script of bench/peers and its options. `peers/README.md` tells
how the environments and models are made.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import measure
from report import Report, default_out

LOADS: dict[str, dict[str, int]] = {
    "decode-64": {"prompt": 64, "steps": 64, "batch": 1},
    "decode-2048": {"prompt": 2048, "steps": 32, "batch": 1},
    "prefill-256": {"prompt": 256, "steps": 0, "batch": 1},
    "prefill-1024": {"prompt": 1024, "steps": 0, "batch": 1},
    "batch-8": {"prompt": 64, "steps": 32, "batch": 8},
}
HOW = ("Every contender is a process with 2 threads that has loaded the same random weights; it answers one request at a time, "
       "in an order that shifts each round, while the others wait asleep. Rates are medians in tokens a second; a batch counts "
       "all its rows. The read bandwidth is probed before and after each load, the bound is the mean over the bytes of weights "
       "and filled cache that a token must read")


class Contender:
    """A peer's process; see peers/serve.py."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                        text=True)
        self.about = self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline() if self.process.stdout else ""
        return json.loads(line) if line else {"error": f"the process ended with {self.process.wait()}"}

    def ask(self, request: dict[str, int]) -> dict[str, Any]:
        if self.process.stdin is None or self.process.poll() is not None:
            return {"error": "the process has ended"}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def started(commands: dict[str, list[str]]) -> Iterator[dict[str, Contender]]:
    """All contenders of a group, loaded one after another."""
    with ExitStack() as stack:
        found = {}
        for name, command in commands.items():
            found[name] = Contender(command)
            stack.callback(found[name].close)
        yield found


def rate(load: dict[str, int], answer: dict[str, Any]) -> float:
    """Tokens a second of what the load is about: decoding where it has steps, else prefill."""
    if load["steps"]:
        return load["batch"] * load["steps"] / answer["decode_seconds"]
    return load["batch"] * load["prompt"] / answer["prefill_seconds"]


def measured(load: dict[str, int], contenders: dict[str, Contender], rounds: int) -> dict[str, Any]:
    """Rates of every contender under one load, and the reasons of those that gave none."""
    faults: dict[str, str] = {}
    peaks: dict[str, float] = {}
    able = dict(contenders)
    for name, contender in contenders.items():  # the first of each is not kept: it makes caches and compiles
        answer = contender.ask(load)
        if "error" in answer:
            faults[name] = answer["error"]
            del able[name]

    def sample(name: str) -> float:
        answer = able[name].ask(load)
        peaks[name] = max(peaks.get(name, 0), answer["rss_mb"])
        return rate(load, answer)

    before = measure.read_bandwidth(rounds=5)
    samples = measure.interleave({name: (lambda n=name: sample(n)) for name in able}, rounds, warm=0)
    after = measure.read_bandwidth(rounds=5)
    return {"tokens_per_second": {name: measure.summary(values, 1) for name, values in samples.items()}, "faults": faults,
            "rss_mb": peaks, "bandwidth": [before["gb_per_second"], after["gb_per_second"]],
            "steady": measure.steady(before["gb_per_second"], after["gb_per_second"])}


def bound(group: dict[str, Any], load: dict[str, int], found: dict[str, Any], gflops: float) -> float:
    """Tokens a second that bandwidth (decoding) or the matrix rate (prefill) allow."""
    if not load["steps"]:
        return gflops * 1e9 / (2 * group["parameters_per_token"])
    slots = load["prompt"] + load["steps"] / 2
    nbytes = group["bytes_per_token"] + load["batch"] * slots * group["kv_bytes_per_slot"]
    return load["batch"] * sum(found["bandwidth"]) / 2 * 1e9 / nbytes


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--peers", type=Path, required=True)
    options.add_argument("--only", default="", help="groups whose name holds this")
    options.add_argument("--loads", default=",".join(LOADS))
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--out", type=Path, default=default_out("cpu"))
    given = options.parse_args()
    groups = {n: g for n, g in json.loads(given.peers.read_text())["groups"].items() if given.only in n}
    report, details = Report("cpu", given.out), {}
    for title, group in groups.items():
        with started(group["contenders"]) as contenders:
            ready = {n: c for n, c in contenders.items() if c.about.get("ready")}
            told = {n: c.about for n, c in contenders.items()}
            details[title] = {"contenders": told, "loads": {}}
            for name in given.loads.split(","):
                load, gflops = LOADS[name], measure.matrix_rate()["bfloat16"]
                found = measured(load, ready, given.rounds)
                found["bound"] = round(bound(group, load, found, gflops), 1)
                details[title]["loads"][name] = found | {"matrix_gflops_bfloat16": gflops}
                medians = {n: s["median"] for n, s in found["tokens_per_second"].items()}
                ours = medians.pop("glmc")
                report.add(f"{title}, {name}: glmc", ours, "tokens/s")
                report.add(f"{title}, {name}: share of the bound", ours / found["bound"], "")
                if medians:
                    best = max(medians, key=medians.__getitem__)
                    report.add(f"{title}, {name}: over the best peer ({best})", ours / medians[best], "x", 1.0, "higher")
                    for other in sorted(medians, key=medians.__getitem__):
                        report.add(f"{title}, {name}: {other}", medians[other], "tokens/s")
    report.finish(HOW, {"groups": details})


if __name__ == "__main__":
    main()
