"""From starting a process to its first tokens: glmc beside llama.cpp on the same weights, and what importing torch takes.

    python bench/cold_start.py --peers PEERS.json [--group "dense bfloat16"]

Every process loads its model, reads a prompt of 32 tokens, makes four more, and ends (peers/serve.py with an empty stdin).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import measure
from report import Report, default_out

BAR = 1.5
HOW = ("Wall time of whole processes, from starting one until it has said that it is ready, taking turns; files in the page "
       "cache; medians. The bar is 1.5 times llama.cpp plus what `import torch` takes")


def ready(command: list[str]) -> tuple[float, float]:
    """(seconds until the process says that it is ready, MB that it held at most)."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          text=True) as process:
        line = process.stdout.readline() if process.stdout else ""
        seconds = time.perf_counter() - began
        process.kill()
    about: dict[str, Any] = json.loads(line)
    return seconds, about["rss_mb"]


def imported() -> float:
    """Seconds of a process that imports torch and ends."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - began


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--peers", type=Path, required=True)
    options.add_argument("--group", default="dense bfloat16")
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--out", type=Path, default=default_out("cold_start"))
    given = options.parse_args()
    commands = json.loads(given.peers.read_text())["groups"][given.group]["contenders"]
    memory: dict[str, float] = {}

    def start(name: str) -> float:
        seconds, memory[name] = ready(commands[name])
        return seconds

    names = [n for n in commands if n == "glmc" or n.startswith("llama.cpp")]
    report = Report("cold_start", given.out)
    samples = measure.interleave({**{n: (lambda n=n: start(n)) for n in names}, "import torch": imported}, given.rounds)
    found = {n: measure.summary(s) for n, s in samples.items()}
    peer = next(n for n in names if n != "glmc")
    bar = BAR * found[peer]["median"] + found["import torch"]["median"]
    report.add("glmc: process to first tokens", found["glmc"]["median"], "s", round(bar, 3), "lower")
    report.add(f"{peer}: process to first tokens", found[peer]["median"], "s")
    report.add("import torch", found["import torch"]["median"], "s")
    for name, value in memory.items():
        report.add(f"{name}: peak memory", value, "MB")
    report.finish(HOW, {"seconds": found, "group": given.group})


if __name__ == "__main__":
    main()
