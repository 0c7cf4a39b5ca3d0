"""Opening an artefact until its first token: fresh processes, phase by phase."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import tempfile
import time
from pathlib import Path

import fresh_process
from checkpoints import GLM4_220M
from compile_once import in_fresh_process, random_model
from measure import summary
from report import Report, default_out

BAR = 0.5
PHASES = ("imports", "open", "weights_and_code", "place", "first_token")
HOW = ("each sample is a fresh process that imports torch and glmc, then times glmc.load and the first greedy token "
       "of a 32-token prompt. imports: glmc's runtime modules; open: manifest and list of files; weights: the "
       "program, then weights read and compared with their digests; code: libraries compared and loaded, cache "
       "allocated; first_token: prefill and sample. Every file of the artefact is read before each sample, so the "
       "page cache is warm")


def child(artifact: Path) -> None:
    """What is measured: runs in a fresh process and prints the seconds of each phase."""
    import torch

    import glmc

    began = time.perf_counter()
    importlib.import_module("glmc.runtime.session")
    imported = time.perf_counter()
    model = glmc.load(artifact)
    loaded = time.perf_counter()
    prompt = [(37 * i + 11) % model.dims["vocabulary"] for i in range(32)]
    answer = model.generate(prompt, max_new_tokens=1)
    ended = time.perf_counter()
    inside = model.timings
    print(json.dumps({
        "total": ended - began, "imports": imported - began,
        "open": loaded - imported - inside["weights_and_code"] - inside["place"],
        "weights_and_code": inside["weights_and_code"], "place": inside["place"], "first_token": ended - loaded,
        "token": answer.token_ids,
        "threads": torch.get_num_threads()}))


def warm(artifact: Path) -> int:
    """Read every file of the artefact once; returns the bytes."""
    total = 0
    for path in sorted(p for p in artifact.rglob("*") if p.is_file()):
        with open(path, "rb") as file:
            while piece := file.read(1 << 22):
                total += len(piece)
    return total


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--artifact", type=Path, help="measure this artefact instead of making the 220 M one")
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--out", type=Path, default=default_out("load"))
    options.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.child:
        return child(given.child)
    report = Report("load", given.out)
    with tempfile.TemporaryDirectory(prefix="glmc-bench-") as scratch:
        artifact = given.artifact
        if artifact is None:
            artifact = Path(scratch) / "model.glmc"
            in_fresh_process(random_model(Path(scratch), GLM4_220M), artifact)
            os.sync()  # what was just written would otherwise reach the disk during the measurement
        samples = []
        for number in range(-1, given.rounds):
            nbytes = warm(artifact)
            sample = fresh_process.run(fresh_process.python(__file__, "--child", artifact)).json()
            if number >= 0:
                samples.append(sample)
        manifest = json.loads((artifact / "manifest.json").read_text())
    phases = {name: summary([s[name] for s in samples]) for name in ("total", *PHASES)}
    report.add("load to first token, median", phases["total"]["median"], "s", BAR)
    report.add("load to first token, least", phases["total"]["min"], "s")
    report.add("load to first token, most", phases["total"]["max"], "s")
    for name in PHASES:
        report.add(f"{name}, median", phases[name]["median"], "s")
    report.finish(HOW, {
        "artifact_bytes": nbytes, "dims": manifest["dims"], "bounds": manifest["bounds"], "dtype": manifest["dtype"],
        "threads": samples[0]["threads"], "one_token": len({str(s["token"]) for s in samples}) == 1, "seconds": phases})
    return None


if __name__ == "__main__":
    main()
