"""Two reports side by side: only of the same work on the same machine, a ratio with its interval for each figure, a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glmc.bench.probe import steady
from glmc.bench.report import METRICS, by_round
from glmc.bench.sample import Sample
from glmc.bench.schema import REPORT, check
from glmc.bench.statistics import ratio
from glmc.checkpoint.regular_file import read_range, regular_file
from glmc.checkpoint.strict_json import parse_json
from glmc.errors import OtherWork, ReportError

SURE = 0.95
"""How sure all verdicts together are: each interval is wider, the more figures there are."""
ROUNDS = 6
"""With fewer rounds nothing is said of a figure."""
_MOST_BYTES = 1 << 30
_WORK = ("source", "family", "dtype", "quant", "seed", "threads", "device", "requests", "digest")
_MACHINE = ("cpu", "arch", "cores", "cpu_flags")
_TOLD = ("system", "python", "packages", "environment")
FASTER, SLOWER, NOISE, FEW = "faster", "slower", "within noise", "too few rounds"


@dataclass(frozen=True)
class Figure:
    """One figure of both reports. ratio: the second's median over the first's; low, high: its interval. verdict: of the second.
    judged: whether the exit code hears of it; the others' figures are there to show what the machine did."""

    contender: str
    test: str
    metric: str
    first: float
    second: float
    ratio: float | None
    low: float | None
    high: float | None
    verdict: str
    judged: bool


@dataclass(frozen=True)
class Comparison:
    """level: how sure each interval is. notes: what differs without being other work. verdict: of all judged figures."""

    figures: list[Figure]
    level: float
    notes: list[str]

    @property
    def verdict(self) -> str:
        found = {figure.verdict for figure in self.figures if figure.judged}
        return next((one for one in (SLOWER, FASTER, NOISE) if one in found), FEW)

    def to_json(self) -> dict[str, Any]:
        return {"verdict": self.verdict, "level": self.level, "notes": self.notes,
                "figures": [asdict(one) for one in self.figures]}


def read(path: Path) -> dict[str, Any]:
    """A report that is what its schema says. Raises ReportError, StorageError."""
    with regular_file(path, error=ReportError) as (descriptor, state):
        if state.st_size > _MOST_BYTES:
            raise ReportError("the file is too large", file=path, expected=f"at most {_MOST_BYTES} bytes", found=state.st_size)
        data = read_range(descriptor, state.st_size, 0, file=path, error=ReportError)
    report = parse_json(data, error=ReportError, file=path)
    check(report, REPORT, path)
    return report


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(field, first's, second's) of what makes it other work or another machine."""
    found = [(f"{part}.{name}", first[part].get(name), second[part].get(name))
             for part, names in (("work", _WORK), ("machine", _MACHINE)) for name in names
             if first[part].get(name) != second[part].get(name)]
    # The digest is of source and requests: it is named only where nothing else says what differs.
    return [one for one in found if one[0] != "work.digest"] or found


def compare(first: dict[str, Any], second: dict[str, Any]) -> Comparison:
    """`second` beside `first`. Raises OtherWork, which names all that differs."""
    if other := differences(first, second):
        fields, firsts, seconds = zip(*other, strict=True)
        raise OtherWork("the reports are not of the same work on the same machine", field=", ".join(fields),
                        expected="; ".join(map(str, firsts)), found="; ".join(map(str, seconds)))
    ours, theirs = (report["contenders"][0]["name"] for report in (first, second))
    pairs = []
    for one in first["results"]:
        name = theirs if one["contender"] == ours else one["contender"]
        two = next((r for r in second["results"] if (r["contender"], r["test"]) == (name, one["test"])), None)
        if two is not None:
            pairs += [(metric, one, two) for metric in METRICS if one["metrics"][metric] and two["metrics"][metric]]
    level = 1 - (1 - SURE) / max(1, sum(one["contender"] == ours for _, one, _ in pairs))
    figures = [_figure(metric, one, two, level, one["contender"] == ours) for metric, one, two in pairs]
    return Comparison(figures, level, notes(first, second))


def _figure(metric: str, one: dict[str, Any], two: dict[str, Any], level: float, judged: bool) -> Figure:
    before, after = (by_round([Sample.from_json(rows) for rows in result["rounds"]], metric) for result in (one, two))
    medians = one["metrics"][metric]["median"], two["metrics"][metric]["median"]
    if min(len(before), len(after)) < ROUNDS:
        return Figure(one["contender"], one["test"], metric, *medians, None, None, None, FEW, judged)
    found = ratio(after, before, level)
    return Figure(one["contender"], one["test"], metric, *medians, round(found.ratio, 5), round(found.low, 5),
                  round(found.high, 5), SLOWER if found.low > 1 else FASTER if found.high < 1 else NOISE, judged)


def notes(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """What else differs, or makes the comparison weaker than it looks, in sentences."""
    made = [f"{name}: {_shown(first['machine'].get(name))} in the first, {_shown(second['machine'].get(name))} in the second"
            for name in _TOLD if first["machine"].get(name) != second["machine"].get(name)]
    if first["artifact"]["digest"] != second["artifact"]["digest"]:
        made.append("the artefacts are two: " + _changed(first["artifact"], second["artifact"]))
    for order, report in (("first", first), ("second", second)):
        if report["interrupted"]:
            made.append(f"the {order} is partial: {report['interrupted']}")
        if report["noise"]["quiet"] is False:
            made.append(f"the {order} was disturbed: {report['noise']['said'][0]}")
    bandwidths = [report["probe"]["read_gb_per_second"] for report in (first, second) if report["probe"]]
    if len(bandwidths) == 2 and not steady(*bandwidths):
        made.append(f"the machine itself was not as fast both times: it read {bandwidths[0]:g} GB/s in the first and "
                    f"{bandwidths[1]:g} in the second")
    return made


def _changed(first: dict[str, Any], second: dict[str, Any]) -> str:
    """Which fields of the artefacts differ, and of the ledger which fusions were taken otherwise."""
    fields = [f"{name} {first[name]} and {second[name]}" for name in ("target", "engine", "glmc", "torch")
              if first[name] != second[name]]
    taken = [{row["fusion"]: row["taken"] for row in one["ledger"]} for one in (first, second)]
    counted = {name: (taken[0].get(name, 0), taken[1].get(name, 0)) for name in sorted({*taken[0], *taken[1]})}
    fields += [f"{name} taken {one} and {two} times" for name, (one, two) in counted.items() if one != two]
    return ", ".join(fields) or "their ledgers agree"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {one}" for name, one in sorted(value.items())) or "nothing"
    return str(value)


def counts(figures: Sequence[Figure]) -> str:
    """How many judged figures have which verdict, in words."""
    judged = [one.verdict for one in figures if one.judged]
    return ", ".join(f"{judged.count(verdict)} {verdict}" for verdict in (SLOWER, FASTER, NOISE, FEW) if verdict in judged)
