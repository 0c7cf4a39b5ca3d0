"""How a compilation tells where it is, on stderr: bars on a terminal, one line a stage elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from glmc.cli.show import console, talk

Report = Callable[[str, int, int], None]


@contextlib.contextmanager
def progress() -> Iterator[Report]:
    """Gives report(stage, done, total). Meanwhile whatever prints to stdout prints to stderr: stdout is for data."""
    screen = console(stderr=True)
    with contextlib.redirect_stdout(sys.stderr):
        if screen.is_terminal:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
                       TimeElapsedColumn())
            with Progress(*columns, console=screen, transient=True) as bars:
                yield _bars(bars)
        else:
            yield _lines()


def _bars(bars: Progress) -> Report:
    tasks: dict[str, TaskID] = {}

    def report(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total)
        bars.update(tasks[stage], completed=done, total=total)

    return report


def _lines() -> Report:
    told: set[str] = set()
    since = time.perf_counter()

    def report(stage: str, done: int, total: int) -> None:
        """A line when a stage is through; its seconds count from the end of the stage before."""
        nonlocal since
        if done >= total and stage not in told:
            told.add(stage)
            now = time.perf_counter()
            talk(f"{stage}: {f'{total} in ' if total > 1 else ''}{now - since:.1f} s")
            since = now

    return report
