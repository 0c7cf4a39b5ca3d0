"""Who else used the processors meanwhile: load averages, and CPU time on our cores that none of our processes had."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmc.bench.machine import cores

QUIET = 0.05
"""The greatest share of the cores that others may have had on a machine that is called quiet."""
_PROC = Path("/proc")
_IDLE = (3, 4)
_GUEST = 8
"""Fields of a line of /proc/stat: idle, waiting for a disk; from here on time that is counted already."""


def load_average() -> list[float]:
    """The system's load averages over 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


@dataclass(frozen=True)
class Look:
    """At one moment: seconds of the clock, busy seconds of our cores, busy seconds of our own processes."""

    at: float
    busy: float
    own: float


def look(pids: Iterable[int], proc: Path = _PROC) -> Look | None:
    """pids: our processes besides this one. None where the system does not tell."""
    if not (proc / "stat").is_file():
        return None
    tick, mine = os.sysconf("SC_CLK_TCK"), {f"cpu{number}" for number in cores()}
    busy = 0
    for line in (proc / "stat").read_text().splitlines():
        name, *fields = line.split()
        if name in mine:
            busy += sum(int(value) for place, value in enumerate(fields[:_GUEST]) if place not in _IDLE)
    return Look(time.perf_counter(), busy / tick, sum(_own(proc / str(pid) / "stat") for pid in (os.getpid(), *pids)) / tick)


def _own(path: Path) -> int:
    """Ticks that a process and its ended children had; 0 of one that is gone."""
    try:
        fields = path.read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(map(int, fields[11:15]))


def foreign_share(before: Look | None, after: Look | None) -> float | None:
    """The share of our cores that others had between two looks, 0 to 1."""
    if before is None or after is None or after.at <= before.at:
        return None
    seconds = (after.at - before.at) * len(cores())
    return round(min(1.0, max(0.0, (after.busy - before.busy - (after.own - before.own)) / seconds)), 4)


def told(shares: Sequence[float | None], before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """What a report says of others. quiet: whether they had at most QUIET of the cores in the middle round; None: not known."""
    known = sorted(share for share in shares if share is not None)
    middle = known[len(known) // 2] if known else None
    return {"load_average_before": list(before), "load_average_after": list(after), "foreign_cpu_share": list(shares),
            "foreign_cpu_share_median": middle, "foreign_cpu_share_max": known[-1] if known else None,
            "quiet": None if middle is None else middle <= QUIET}
