"""A benchmark's result: figures against their bars, as one JSON file and a short Markdown table on stdout."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import measure

ROOT = Path(__file__).resolve().parents[1]
SYMBOL = {"lower": "at most", "higher": "at least", "equal": "exactly"}


def command() -> str:
    """The command line of this process, the script named relative to the checkout."""
    script = Path(sys.argv[0]).resolve()
    shown = script.relative_to(ROOT) if script.is_relative_to(ROOT) else script.name
    return shlex.join(["python", str(shown), *sys.argv[1:]])


def met(value: Any, bar: Any, better: str) -> bool:
    """Whether `value` meets `bar`; better is "lower", "higher" or "equal"."""
    return {"lower": value <= bar, "higher": value >= bar, "equal": value == bar}[better]


class Report:
    """Made when the measuring begins, so that it knows the load before it. Nothing is asserted: bars are reported."""

    def __init__(self, name: str, out: Path) -> None:
        self.name, self.out = name, out
        self.load_before = measure.load_average()
        self.began = time.time()
        self.figures: list[dict[str, Any]] = []

    def add(self, figure: str, value: Any, unit: str, bar: Any = None, better: str = "lower") -> None:
        """One figure; with a bar it also says whether the bar is met."""
        row = {"figure": figure, "value": round(value, 4) if isinstance(value, float) else value, "unit": unit}
        if bar is not None:
            row |= {"bar": bar, "better": better, "met": met(value, bar, better)}
        self.figures.append(row)

    def write(self, how: str, details: dict[str, Any]) -> None:
        """Write the JSON file. how: a sentence about the method, kept beside the figures."""
        result = {"benchmark": self.name, "command": command(), "how": how, "figures": self.figures, "details": details,
                  "machine": measure.machine(), "load_before": self.load_before, "load_after": measure.load_average(),
                  "date": time.strftime("%Y-%m-%d", time.gmtime(self.began)),
                  "seconds": round(time.time() - self.began, 1)}
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps(result, indent=1) + "\n")

    def finish(self, how: str, details: dict[str, Any]) -> None:
        """Write the file and print the table."""
        self.write(how, details)
        print("| figure | value | bar | |\n| --- | --- | --- | --- |")
        for row in self.figures:
            bar = f"{SYMBOL[row['better']]} {row['bar']} {row['unit']}" if "bar" in row else ""
            verdict = ("met" if row["met"] else "missed") if "bar" in row else ""
            print(f"| {row['figure']} | {row['value']} {row['unit']} | {bar} | {verdict} |")


def default_out(name: str) -> Path:
    """Where a benchmark's result goes unless --out says otherwise."""
    return ROOT / "bench" / "results" / f"{name}.json"
