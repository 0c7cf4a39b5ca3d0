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
from pathlib import Path
from typing import Any

import psutil
from measure import summary
from report import Report, default_out

from glmc.errors import GlmcError
from glmc.runtime.faults import KINDS, PHASES
from glmc.runtime.supervise import Supervised

MATRIX = [kind for kind in KINDS if kind != "nan"]
WHOLE = ("raise", "kill", "freeze", "hang", "slow", "exit0")
"""Faults of a whole process, which can strike before the ranks have met as well."""
LATE = ("freeze", "hang")
"""Faults that only a deadline ends."""
IN_TIME = 2.0
TOKENS = 6
HOW = ("each cell is one run of processes on the CPU with one planted fault: {kinds}, in each of {phases}, in rank 0 and in "
       "the last; before the ranks have met (meet) only faults of a whole process; besides, a value that is not finite in what "
       "rank 0 sends. Time runs from the fault to the end of all processes. A run without an error must be of kind `slow`, and "
       "must give the tokens of a run of one process. A process is left over if it carries the cell's number in its command "
       "line when the run has ended. Where two ranks differ and nothing tells which is right (shape, dtype, disagree), both "
       "are named")
_STARTING = threading.Lock()


def cells(ranks: int) -> list[tuple[str, str, int]]:
    """(kind, phase, rank) of the whole matrix."""
    victims = (0, ranks - 1)
    return [*itertools.product(MATRIX, [phase for phase in PHASES if phase != "meet"], victims),
            *itertools.product(WHOLE, ["meet"], victims), ("nan", "prompt", 0)]


def cell(out: Path, kind: str, phase: str, victim: int, wanted: list[int], deadline: float, number: int, ranks: int = 2,
         ) -> dict[str, Any]:
    """Run one cell; what happened. number: tells its processes from those of others."""
    with tempfile.TemporaryDirectory(prefix="glmc-fault-") as folder:
        mark = Path(folder) / "struck"
        request = {"prompt": "hello", "max_new_tokens": TOKENS, "raw": True, "seed": number}
        with _STARTING:  # the environment is the process's, and workers inherit what it was when they were asked for
            os.environ["GLMC_FAULT"] = f"rank={victim},stage={phase},kind={kind},mark={mark}"
            run = Supervised(out, request, ranks, deadline)
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
    fault = getattr(error, "fault", None)
    found = {"kind": kind, "phase": phase, "rank": victim, "struck": seconds is not None, "seconds": seconds,
             "exit": error.exit if error else 0, "named": list(fault.ranks) if fault else [], "left": len(left),
             "wrong": run.result is not None and (run.result.token_ids != wanted or kind != "slow"),
             "error": error.what if error else None}
    bar = IN_TIME + (deadline if kind in LATE else 0)
    if kind == "slow":
        found["passes"] = run.result is not None and not found["wrong"] and not left
    else:
        found["passes"] = bool(found["struck"] and error and victim in found["named"] and not left and not found["wrong"]
                               and seconds is not None and seconds <= bar and error.exit == (7 if kind == "nan" else 6))
    return found


def alone(out: Path) -> list[int]:
    """The tokens of one process."""
    import glmc

    return glmc.load(out).generate("hello", max_new_tokens=TOKENS, raw=True).token_ids


def matrix(out: Path, chosen: Iterable[tuple[str, str, int]], deadline: float, at_once: int, ranks: int = 2,
           ) -> list[dict[str, Any]]:
    """Run cells, several at once."""
    wanted, base = alone(out), int(time.time()) % 10**6 * 1000
    with ThreadPoolExecutor(at_once) as pool:
        return [*pool.map(lambda one: cell(out, *one[1], wanted, deadline, base + one[0], ranks), enumerate(chosen))]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("artifact", type=Path, help="a small artefact for the CPU")
    options.add_argument("--ranks", type=int, default=2)
    options.add_argument("--deadline", type=float, default=10.0, help="seconds; importing torch must fit in it")
    options.add_argument("--at-once", type=int, default=2)
    options.add_argument("--kinds", help="only these, separated by commas")
    options.add_argument("--out", type=Path, default=default_out("faults"))
    given = options.parse_args()
    report = Report("faults", given.out)
    chosen = [one for one in cells(given.ranks) if not given.kinds or one[0] in given.kinds.split(",")]
    found = matrix(given.artifact, chosen, given.deadline, given.at_once, given.ranks)
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
    report.finish(HOW.format(kinds=", ".join(MATRIX), phases=", ".join(PHASES)), {
        "deadline_s": given.deadline, "ranks": given.ranks, "at_once": given.at_once,
        "seconds": summary(quick) if quick else None, "cells": found})


if __name__ == "__main__":
    main()
