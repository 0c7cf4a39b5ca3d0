"""What the command line shows: tables and errors for people, one JSON object for programs.

Data goes to stdout, talk to stderr. Nothing read from a file reaches a terminal unescaped.
"""

from __future__ import annotations

import errno
import json
import re
import sys
import traceback
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from glmc import knobs
from glmc.errors import GlmcError, InternalError, UsageError, printable

_TIMED = {"ours": "ours", "plain": "plain steps", "smaller": "smaller fusions", "inductor": "Inductor"}
_PLAIN_WIDTH = 140  # columns where output is no terminal, so that a pipe does not get tables cut at 80


class _Console(Console):
    """Leaves a closed pipe to the one place that answers it; rich would exit with 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, "the reader has gone")


def console(stderr: bool = False) -> Console:
    """A console on today's stdout or stderr that takes every text literally (no markup, no emoji codes)."""
    made = _Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    return made if made.is_terminal else _Console(stderr=stderr, markup=False, emoji=False, highlight=False,
                                                  width=_PLAIN_WIDTH)


def data(value: Mapping[str, Any]) -> None:
    """One JSON object on one line of stdout, ASCII, so that neither a terminal nor an encoding can stumble over it."""
    sys.stdout.write(json.dumps(value, ensure_ascii=True, allow_nan=False) + "\n")


def talk(line: str) -> None:
    """One line on stderr."""
    sys.stderr.write(line + "\n")


def terminal_safe(text: str) -> str:
    """`text` with control and bidirectional characters escaped; line ends and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def bytes_text(count: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def facts(title: str, pairs: Mapping[str, Any]) -> Table:
    """A two-column table of names and values."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        table.add_row(printable(name), printable(value))
    return table


def rows(title: str, columns: Iterable[str], lines: Iterable[Iterable[Any]]) -> Table:
    """A table with a header; columns whose values are all numbers, or empty, are set to the right."""
    cells = [list(line) for line in lines]
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        numeric = bool(cells) and all(isinstance(line[place], (int, float, type(None))) for line in cells)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for line in cells:
        table.add_row(*(_cell(value) for value in line))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (int, float)):
        return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
    return printable(value)


def ledger(entries: Iterable[Mapping[str, Any]]) -> list[Table]:
    """The ledger (as `Ledger.to_json` gives it); where fusions were timed, how they fared; where sites were refused, the
    reasons with their number.

    Fusions that the model has no site of are left out. Reasons that differ in the layer's number alone count as one.
    """
    kept = [e for e in entries if e["expected"] or e["proved"]]
    timed = [(e["fusion"], site, bucket) for e in kept for site in e.get("timings", ()) for bucket in site["buckets"]]
    heads = ["fusion", "expected", "proved", "taken", "refused", "predicted gain (us/token)"]
    lines = [[e["fusion"], e["expected"], e["proved"], e["taken"], len(e["refused"]), e["predicted_us"]] for e in kept]
    if timed:
        heads.append("measured gain (us/token)")
        lines = [[*line, e["measured_us"]] for line, e in zip(lines, kept, strict=True)]
    tables = [rows("ledger", heads, lines)]
    if timed:
        tables.append(rows("timed on the device (us a call)",
                           ("fusion", "first tensor", "sites", "taken", "bucket", *_TIMED.values()),
                           [(fusion, next(iter(site["shapes"].values()), ""), site["sites"], site["taken"], bucket["bucket"],
                             *(bucket[f"{name}_us"] for name in _TIMED)) for fusion, site, bucket in timed]))
    reasons = Counter((e["fusion"], re.sub(r"\b(layers?|blocks)\.\d+", r"\1.N", r["reason"]))
                      for e in kept for r in e["refused"])
    if reasons:
        tables.append(rows("refused", ("fusion", "sites", "reason"),
                           [(fusion, count, reason) for (fusion, reason), count in sorted(reasons.items())]))
    return tables


def show_level() -> int:
    """GLMC_SHOW, or 1 where it is no number: whoever set it wants to see more. Used while a fault is being told."""
    try:
        return int(knobs.get("GLMC_SHOW"))
    except UsageError as fault:
        talk(f"note: {fault}")
        return 1


def fault(error: GlmcError, as_json: bool, cause: BaseException | None = None) -> None:
    """Tell an error: a paragraph on stderr, or {"error": {...}} on stdout; `cause`'s traceback if GLMC_SHOW >= 1."""
    if cause is not None and show_level() >= 1:
        sys.stderr.write("".join(traceback.format_exception(cause)))
    if as_json:
        data({"error": error.to_json()})
        return
    screen = console(stderr=True)
    head = "internal error: " if isinstance(error, InternalError) else "error: "
    screen.print(head, style="bold red", end="")
    screen.print("\n".join(printable(line) for line in error.sentence().split("\n")), soft_wrap=True)
