"""Compile a checkpoint once in this process and print, as JSON, when each stage ran and how much memory it took.

    python bench/compile_once.py CHECKPOINT OUT [--target cpu] [--max-len 512] [--dtype auto]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import fresh_process
from report import ROOT

WORK = ROOT / "build" / "bench"
"""Where benchmarks keep compiled regions; build/ is not in version control."""


def in_fresh_process(checkpoint: Path, out: Path, target: str = "cpu", max_len: int = 512, cached: bool = True,
                     watch: bool = False, dtype: str = "auto") -> tuple[dict[str, Any], fresh_process.Finished]:
    """Run this file in a process of its own. Returns what it printed, and the process.

    cached: keep regions in WORK between runs; otherwise nothing compiled before is used, by glmc or by Inductor.
    """
    command = fresh_process.python(__file__, checkpoint, out, "--target", target, "--max-len", max_len, "--dtype", dtype)
    if cached:
        finished = fresh_process.run(command, {"GLMC_CACHE": str(WORK / "regions")}, watch)
    else:
        with tempfile.TemporaryDirectory(prefix="glmc-bench-inductor-") as empty:
            finished = fresh_process.run(command, {"GLMC_CACHE": None, "TORCHINDUCTOR_CACHE_DIR": empty}, watch)
    return finished.json(), finished


def random_model(folder: Path, config: dict[str, Any]) -> Path:
    """Write a random dense checkpoint of `config` into `folder`/checkpoint, in a process of its own; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "asked.json").write_text(json.dumps(config))
    script = Path(__file__).with_name("checkpoints.py")
    fresh_process.run(fresh_process.python(script, folder / "asked.json", folder / "checkpoint"))
    return folder / "checkpoint"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("checkpoint", type=Path)
    options.add_argument("out", type=Path)
    options.add_argument("--target", default="cpu")
    options.add_argument("--max-len", type=int, default=512)
    options.add_argument("--dtype", default="auto")
    given = options.parse_args()
    import glmc

    stages: dict[str, list[float]] = {}
    began = time.perf_counter()

    def progress(stage: str, done: int, total: int) -> None:
        now = time.perf_counter() - began
        stages.setdefault(stage, [now, now])[1] = now

    made = glmc.compile(given.checkpoint, given.out, target=given.target, dtype=given.dtype, max_len=given.max_len,
                        progress=progress)
    total = time.perf_counter() - began
    regions = sum(name.endswith(".region") for name in made.files)
    print(json.dumps({
        "seconds": total, "stages": {k: last - first for k, (first, last) in stages.items()}, "regions": regions,
        "libraries": sum(name.endswith(".so") for name in made.files),
        "survey_seconds": made.manifest["seconds"], "memory": fresh_process.own_memory()}))


if __name__ == "__main__":
    main()
