"""The rows of the issues' tables that are tests: how many checks each has, how many fail, and what they recorded.

`make test` holds them; here they are run by themselves, so that the figures stand in a file.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from report import ROOT, Report, default_out

ROWS: dict[str, list[str]] = {
    "golden vectors: axis maps exact, float32 within 1e-5, half types within one step": ["passes/test_golden.py"],
    "near misses generated, none rewritten into other numbers": ["passes/test_near_misses.py"],
    "matching twice changes nothing, every fusion in every form": ["passes/test_fusions.py", "-k", "rewriting_keeps"],
    "partial width at 65,536 rows, positions to 1,000,000": ["passes/test_rope_extremes.py"],
    "same sites under torch.compile as on the AOT road": ["test_backend.py", "-k", "the_sites_are"],
    "float32 logits within 1e-4 of transformers, 64 greedy tokens, batches": ["families/test_parity.py", "-m", "not slow"],
    "NPU ops on the stand-in: parity, refusals, strictness": ["kernels/test_npu_contract.py"],
    "artefacts for an NPU and a GPU: logits within 1e-4, verdicts": ["test_other_machines.py"],
    "text programs of vision models elsewhere, unequal rows, within 1e-4": ["test_three_axes_elsewhere.py"],
    "images and videos: recorded sizes, frames, texts, positions, patches and bounds, equal": ["runtime/media"],
    "images and videos: prompts are the published processors' ids and pixels": ["runtime/test_asked.py"],
    "images and videos: five families, logits within 1e-4, 32 greedy tokens, batches": ["runtime/test_seeing.py"],
    "images and videos: a tower's regions at any depth, expected = proved": ["passes/test_outline.py", "-k", "towers"],
    "images and videos: quantised checkpoints, lists in every spelling": ["checkpoint/test_quantised_seeing.py"],
    "images and videos: native towers against their text and float64": ["native/test_tower.py"],
    "Triton kernels: exam and bounds of every access, interpreted": ["kernels/test_triton_exam.py"],
    "Triton kernels built for four GPUs, no spills": ["kernels/test_triton_build.py"],
}
HOW = "pytest on the files of each row, two workers with one thread each; a count is of checks that ran, failures included"


def run(selection: list[str]) -> dict[str, Any]:
    """Checks run, those that failed, those skipped, and the properties that tests recorded."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "junit.xml"
        subprocess.run([sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", f"--junitxml={report}",
                        f"tests/{selection[0]}", *selection[1:]], cwd=ROOT, capture_output=True, check=False,
                       env={**os.environ, "OMP_NUM_THREADS": "1"})
        suite = ElementTree.parse(report).getroot().find("testsuite")
    if suite is None:
        raise SystemExit(f"pytest wrote no report for {selection[0]}")
    counts = {k: int(suite.attrib[k]) for k in ("tests", "failures", "errors", "skipped")}
    recorded = {p.attrib["name"]: int(p.attrib["value"]) for p in suite.iter("property")}
    return {"checks": counts["tests"] - counts["skipped"], "failed": counts["failures"] + counts["errors"],
            "skipped": counts["skipped"], "recorded": recorded, "selection": selection}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", default="", help="a text in the row's name or its file")
    options.add_argument("--out", type=Path, default=default_out("checks"))
    given = options.parse_args()
    report, details = Report("checks", given.out), {}
    for name, selection in ROWS.items():
        if given.only in name or given.only in selection[0]:
            details[name] = found = run(selection)
            report.add(f"{name}: checks", found["checks"], "")
            report.add(f"{name}: failed", found["failed"], "", 0, "equal")
            for what, value in found["recorded"].items():
                bar = {"made": (500, "higher"), "wrong": (0, "equal")}.get(what, (None, "lower"))
                report.add(f"{name}: {what}", value, "", *bar)
    report.finish(HOW, {"rows": details})


if __name__ == "__main__":
    main()
