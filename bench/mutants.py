"""Seed every mistake of `mutant_list` into a copy of the source and run the check that must notice it.

    python bench/mutants.py                 all of them; writes bench/results/mutants.json and docs/mutants.md
    python bench/mutants.py --only merge    those whose kind, file or check holds a text; the others keep their last result
    python bench/mutants.py --again         those that have no result, or survived

A check is first run on the source as it is: one that fails there proves nothing. A mistake that nothing notices is a hole in
the tests: the run ends with status 1 and names it.
"""

from __future__ import annotations

import argparse
import compileall
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from mutant_list import MUTANTS, checks

ROOT = Path(__file__).resolve().parent.parent
RESULTS, TABLE = ROOT / "bench" / "results" / "mutants.json", ROOT / "docs" / "mutants.md"
LIMIT = 300
"""Seconds after which a check is ended: a mistake may make a search endless."""
READY = (torch, transformers)
"""Imported once, so that the process of a mutant need not."""


@dataclass(frozen=True)
class Outcome:
    """What became of one mutant. `caught`: the first test that failed, or None."""

    id: str
    kind: str
    file: str
    old: str
    new: str
    check: str
    caught: str | None
    seconds: float


class _Listener:
    """Notes the first test that fails and how many ran."""

    def __init__(self) -> None:
        self.failed: str | None = None
        self.ran = 0

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.ran += report.when == "call"
        if report.failed and self.failed is None:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and self.failed is None:
            self.failed = f"{report.nodeid} (could not be read)"


def identity(mutant: tuple[str, ...]) -> str:
    """A mutant's name: the same as long as it is the same change."""
    return hashlib.sha256("\0".join(mutant[1:4]).encode()).hexdigest()[:8]


def stale(root: Path = ROOT) -> list[str]:
    """What the list says that the source does not: every old text occurs exactly once, and no change is listed twice."""
    faults = []
    for kind, file, old, new, _ in MUTANTS:
        count = (root / file).read_text().count(old)
        if count != 1:
            faults.append(f"{file}: {kind}: the old text occurs {count} times: {old!r}")
        if old == new:
            faults.append(f"{file}: {kind}: nothing is changed")
    names = [identity(m) for m in MUTANTS]
    return faults + [f"listed twice: {m[:3]}" for m in MUTANTS if names.count(identity(m)) > 1]


def copied(folder: Path) -> Path:
    """The source and its tests under `folder`, with glmc.passes and glmc.runtime where their names say."""
    leave = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "glmc", folder / "source" / "glmc", ignore=leave)
    for name in ("passes", "runtime"):
        shutil.copytree(ROOT / name, folder / "source" / "glmc" / name, ignore=leave)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=leave)
    shutil.copy(ROOT / "pyproject.toml", folder)
    compileall.compile_dir(folder, quiet=1)
    return folder


def place(folder: Path, file: str) -> Path:
    """Where a file of the source stands in the copy."""
    return folder / "source" / (file if file.startswith("glmc/") else f"glmc/{file}")


def run(folder: Path, check: str) -> tuple[str | None, int, float]:
    """The first test of `check` that fails in the copy, how many ran, and the seconds; in a process of its own."""
    file, selection = checks()[check]
    answer, began = folder / "answer.json", time.perf_counter()
    answer.unlink(missing_ok=True)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _in_child(folder, file, selection, answer)
    while time.perf_counter() - began < LIMIT:
        done, _ = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return f"no end within {LIMIT} s", 1, LIMIT
    seconds = round(time.perf_counter() - began, 1)
    if not answer.exists():
        return "the process ended", 1, seconds
    found = json.loads(answer.read_text())
    return found["failed"], found["ran"], seconds


def _in_child(folder: Path, file: str, selection: str, answer: Path) -> None:
    """Run pytest on the copy and leave; nothing of the copy reaches the parent."""
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(folder / "source"))
    with open(folder / "output.txt", "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(folder)
    listener = _Listener()
    pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), "-k", selection, str(folder / file)],
                plugins=[listener])
    answer.write_text(json.dumps({"failed": listener.failed, "ran": listener.ran}))
    os._exit(0)


def try_all(chosen: list[tuple[str, ...]], folder: Path) -> tuple[list[Outcome], list[str]]:
    """Outcomes of the chosen mutants, and what kept a check from being one."""
    sound, faults, outcomes = {}, [], []
    for kind, file, old, new, check in chosen:
        if check not in sound:
            failed, ran, seconds = run(folder, check)
            sound[check] = failed is None and ran > 0
            print(f"{seconds:6.1f} s  as it is: {check}: {ran} tests{'' if sound[check] else f', FAILS: {failed}'}", flush=True)
            if not sound[check]:
                faults.append(f"{check} fails on the source as it is, or runs nothing: {failed}")
        if not sound[check]:
            continue
        path = place(folder, file)
        original = path.with_suffix(".original")
        shutil.copy2(path, original)
        path.write_text(path.read_text().replace(old, new))
        failed, _, seconds = run(folder, check)
        original.replace(path)
        outcomes.append(Outcome(identity((kind, file, old, new)), kind, file, old, new, check, failed, seconds))
        print(f"{seconds:6.1f} s  {file}: {kind}: {failed or 'SURVIVED'}", flush=True)
    return outcomes, faults


def table(outcomes: list[dict[str, Any]]) -> str:
    """The outcomes as a page of Markdown."""
    caught = sum(o["caught"] is not None for o in outcomes)
    lines = ["# Seeded mistakes", "", f"`python bench/mutants.py` put {len(outcomes)} mistakes into the source, one at a time; "
             f"the tests noticed {caught}.", "", "| file | mistake | change | noticed by |", "| --- | --- | --- | --- |"]
    for o in sorted(outcomes, key=lambda o: (o["file"], o["kind"])):
        change = f"`{_short(o['old'])}` → `{_short(o['new'])}`"
        test = "**nothing**" if o["caught"] is None else f"`{o['caught'].removeprefix('tests/').replace('|', '')}`"
        lines.append(f"| {o['file']} | {o['kind']} | {change} | {test} |")
    return "\n".join(lines) + "\n"


def _short(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= 60 else text[:57] + "..."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="a text in the kind, the file or the check")
    parser.add_argument("--again", action="store_true", help="those that have no result, or survived")
    asked = parser.parse_args()
    faults = stale()
    if faults:
        print("the list is stale:\n" + "\n".join(faults))
        return 2
    before = json.loads(RESULTS.read_text())["mutants"] if RESULTS.exists() else []
    done = {o["id"] for o in before if o["caught"]} if asked.again else set()
    chosen = [m for m in MUTANTS if any(asked.only in text for text in (m[0], m[1], m[4])) and identity(m) not in done]
    with tempfile.TemporaryDirectory(prefix="glmc-mutants-") as scratch:
        outcomes, faults = try_all(chosen, copied(Path(scratch)))
    made = {o.id: asdict(o) for o in outcomes}
    known = {o["id"]: o for o in before} | made
    kept = [known[identity(m)] for m in MUTANTS if identity(m) in known]
    from measure import machine

    seconds = round(sum(o["seconds"] for o in kept))
    survivors = [o for o in kept if o["caught"] is None]
    RESULTS.write_text(json.dumps({"machine": machine(), "seconds": seconds, "listed": len(MUTANTS), "tried": len(kept),
                                   "caught": len(kept) - len(survivors), "mutants": kept}, indent=1) + "\n")
    TABLE.write_text(table(kept))
    print(f"{len(kept)} of {len(MUTANTS)} tried, {len(kept) - len(survivors)} caught, {seconds} s")
    for line in (*faults, *(f"survived: {o['file']}: {o['kind']}: {o['old']!r}" for o in survivors)):
        print(line)
    return 1 if faults or survivors or len(kept) < len(MUTANTS) else 0


if __name__ == "__main__":
    sys.exit(main())
