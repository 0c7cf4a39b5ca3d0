"""`glmc compare`: two reports of the same work, a ratio with its interval for each figure, a verdict that CI understands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glmc.cli import arguments, show
from glmc.errors import Slower

First = Annotated[Path, typer.Argument(metavar="A.json", help="A report of `glmc bench`, the one before.", show_default=False)]
Second = Annotated[Path, typer.Argument(metavar="B.json", help="The one after.", show_default=False)]


def compare(first: First, second: Second, json: arguments.Json = False) -> None:
    """Compare two reports of the same work: B is faster, slower or within noise; exit code 8 where a figure is slower."""
    from glmc.bench.compare import SLOWER, compare, counts, read

    found = compare(*(read(arguments.existing(path)) for path in (first, second)))
    fault = None
    if found.verdict == SLOWER:
        worst = max((one for one in found.figures if one.judged and one.verdict == SLOWER), key=lambda one: one.ratio or 0)
        fault = Slower("the second report is slower", file=second, field=f"{worst.test} {worst.metric}",
                       expected=f"{worst.first:.4g} ms", found=f"{worst.second:.4g} ms, {worst.ratio:.3f} times")
    if json:
        show.data({**found.to_json(), **({"error": fault.to_json()} if fault else {})})
        if fault:
            raise typer.Exit(fault.exit)
        return
    screen = show.console()
    screen.print(show.rows(f"{second} over {first}: latencies, intervals sure to {found.level:.2%}",
                           ("contender", "test", "", "A ms", "B ms", "B / A", "interval", "verdict of B"),
                           [(one.contender, one.test, one.metric, one.first, one.second, one.ratio,
                             "" if one.low is None else f"{one.low:.4f} to {one.high:.4f}",
                             one.verdict if one.judged else f"({one.verdict})") for one in found.figures]))
    for note in found.notes:
        screen.print(f"note: {note}", soft_wrap=True)
    screen.print(f"verdict: {found.verdict} ({counts(found.figures)})", soft_wrap=True)
    if fault:
        raise fault
