"""Every fault in every phase of a run of two ranks: does it end in time, is the culprit named, is anything left behind."""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from measure import summary
from PIL import Image
from report import Report, default_out

import glmc
from glmc.errors import GlmcError
from glmc.runtime.faults import KINDS
from glmc.runtime.supervise import Supervised

MATRIX = [kind for kind in KINDS if kind != "nan"]
WHOLE = ("raise", "kill", "freeze", "hang", "slow", "exit0")
"""Faults of a whole process, which can strike before the ranks have met as well."""
LATE = ("freeze", "hang")
"""Faults that only a deadline ends."""
TEXT = ("start", "load", "prompt", "decode", "close")
PICTURE = ("prior", "glyphs", "condition", "denoise", "pixels")
"""Phases of a run that makes text, and those that only one has that makes a picture."""
IN_TIME = 2.0
TOKENS = 6
HOW = ("each cell is one run of processes on the CPU with one planted fault: {kinds}, in each of {phases}, in rank 0 and in "
       "the last; before the ranks have met (meet) only faults of a whole process; besides, a value that is not finite in what "
       "rank 0 sends. Time runs from the fault to the end of all processes. A run without an error must be of kind `slow`, and "
       "must give the tokens, or the picture, of a run of one process. A process is left over if it carries the cell's number "
       "in its command line when the run has ended. Where two ranks differ and nothing tells which is right (shape, dtype, "
       "disagree), both are named")
_STARTING = threading.Lock()


@dataclass(frozen=True)
class Subject:
    """What is run: an artefact's folder, and what one process answers to `request(number, folder)`."""

    out: Path
    phases: tuple[str, ...]
    wanted: Any
    images: tuple[Path, ...] = ()

    def request(self, number: int, folder: Path) -> dict[str, Any]:
        """number: tells the run's processes from those of others."""
        if self.phases == TEXT:
            return {"prompt": "hello", "max_new_tokens": TOKENS, "raw": True, "seed": number}
        return {"prompt": "a \"sign\"", "size": "64x32", "steps": 3, "seed": number, "output": str(folder / "out.png"),
                "images": [str(image) for image in self.images]}

    def wrong(self, result: Any, number: int) -> bool:
        """Whether an answer is not that of one process."""
        if self.phases == TEXT:
            return result.token_ids != self.wanted
        return np.abs(pixels(Path(result.path)) - self.wanted(number)).max() > 1


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file), np.int16)


def text(out: Path) -> Subject:
    """A model that makes text."""
    return Subject(out, TEXT, glmc.load(out).generate("hello", max_new_tokens=TOKENS, raw=True).token_ids)


def picture(out: Path, scratch: Path) -> Subject:
    """A model that makes pictures, asked for one from another."""
    given, model = scratch / "given.png", glmc.load(out)
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 32, 3), np.uint8)).save(given)

    def wanted(number: int) -> np.ndarray:
        return np.asarray(model.generate("a \"sign\"", 32, 64, [given], steps=3, seed=number).image, np.int16)

    return Subject(out, PICTURE, wanted, (given,))


def cells(ranks: int, phases: tuple[str, ...]) -> list[tuple[str, str, int]]:
    """(kind, phase, rank) of the whole matrix."""
    victims = (0, ranks - 1)
    early = itertools.product(WHOLE, ["meet"], victims) if phases == TEXT else ()
    return [*itertools.product(MATRIX, phases, victims), *early, ("nan", "prompt" if phases == TEXT else "prior", 0)]


def cell(subject: Subject, kind: str, phase: str, victim: int, deadline: float, number: int, ranks: int = 2) -> dict[str, Any]:
    """Run one cell; what happened."""
    with tempfile.TemporaryDirectory(prefix="glmc-fault-") as folder:
        mark = Path(folder) / "struck"
        request = subject.request(number, Path(folder))
        with _STARTING:  # the environment is the process's, and workers inherit what it was when they were asked for
            os.environ["GLMC_FAULT"] = f"rank={victim},stage={phase},kind={kind},mark={mark}"
            run = Supervised(subject.out, request, ranks, deadline)
            del os.environ["GLMC_FAULT"]
        error: GlmcError | None = None
        try:
            for _ in run:
                pass
        except GlmcError as fault:
            error = fault
        ended = time.time()
        left = [process.pid for process in psutil.process_iter(["cmdline"])
                if process.pid != os.getpid() and any(f'"seed": {number}' in word for word in process.info["cmdline"] or ())]
        seconds = ended - mark.stat().st_mtime if mark.exists() else None
        wrong = run.result is not None and (kind != "slow" or subject.wrong(run.result, number))
    fault = getattr(error, "fault", None)
    found = {"kind": kind, "phase": phase, "rank": victim, "struck": seconds is not None, "seconds": seconds,
             "exit": error.exit if error else 0, "named": list(fault.ranks) if fault else [], "left": len(left),
             "wrong": bool(wrong), "error": error.what if error else None}
    bar = IN_TIME + (deadline if kind in LATE else 0)
    if kind == "slow":
        found["passes"] = run.result is not None and not found["wrong"] and not left
    else:
        found["passes"] = bool(found["struck"] and error and victim in found["named"] and not left and not found["wrong"]
                               and seconds is not None and seconds <= bar and error.exit == (7 if kind == "nan" else 6))
    return found


def matrix(subject: Subject, chosen: Iterable[tuple[str, str, int]], deadline: float, at_once: int, ranks: int = 2,
           ) -> list[dict[str, Any]]:
    """Run cells, several at once."""
    base = int(time.time()) % 10**6 * 1000
    with ThreadPoolExecutor(at_once) as pool:
        return [*pool.map(lambda one: cell(subject, *one[1], deadline, base + one[0], ranks), enumerate(chosen))]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("artifact", type=Path, help="a small artefact for the CPU that makes text")
    options.add_argument("--pictures", type=Path, help="one that makes pictures, for the phases that only it has")
    options.add_argument("--ranks", type=int, default=2)
    options.add_argument("--deadline", type=float, default=10.0, help="seconds; importing torch must fit in it")
    options.add_argument("--at-once", type=int, default=2)
    options.add_argument("--kinds", help="only these, separated by commas")
    options.add_argument("--out", type=Path, default=default_out("faults"))
    given = options.parse_args()
    report = Report("faults", given.out)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="glmc-given-") as scratch:
        subjects = [text(given.artifact), *([picture(given.pictures, Path(scratch))] if given.pictures else [])]
        for subject in subjects:
            chosen = [one for one in cells(given.ranks, subject.phases) if not given.kinds or one[0] in given.kinds.split(",")]
            found += matrix(subject, chosen, given.deadline, given.at_once, given.ranks)
    quick = [one["seconds"] for one in found if one["kind"] not in (*LATE, "slow") and one["seconds"] is not None]
    late = [one["seconds"] - given.deadline for one in found if one["kind"] in LATE and one["seconds"] is not None]
    report.add("cells", len(found), "")
    report.add("cells in which the fault did not strike", sum(not one["struck"] for one in found), "", 0, "equal")
    report.add("cells that do not pass", sum(not one["passes"] for one in found), "", 0, "equal")
    report.add("wrong results", sum(one["wrong"] for one in found), "", 0, "equal")
    report.add("processes left over", sum(one["left"] for one in found), "", 0, "equal")
    faulty, slow = ([one for one in found if (one["kind"] == "slow") == is_slow] for is_slow in (False, True))
    report.add("faults without the culprit's name", sum(one["rank"] not in one["named"] for one in faulty), "", 0, "equal")
    report.add("healthy but slow runs refused", sum(not one["passes"] for one in slow), "", 0, "equal")
    if quick:
        report.add("from the fault to the end, most", max(quick), "s", IN_TIME)
    if late:
        report.add("from the deadline to the end of a frozen or stuck rank, most", max(late), "s", IN_TIME)
    report.finish(HOW.format(kinds=", ".join(MATRIX), phases=", ".join(dict.fromkeys(one["phase"] for one in found))), {
        "deadline_s": given.deadline, "ranks": given.ranks, "at_once": given.at_once,
        "seconds": summary(quick) if quick else None, "cells": found})


if __name__ == "__main__":
    main()
