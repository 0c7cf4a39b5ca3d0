"""The ledger: per fusion and layer, what was expected, proved, taken and refused, and what it is worth. No torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from glmc.errors import PromiseBroken

_LAYER = re.compile(r"^((?:.*?\.)?(?:layers|blocks?|transformer_blocks)\.\d+)(?:\.|$)")
_PARTS = ("visual", "vqmodel", "transformer", "text_encoder", "vae")


def scope_of(place: str) -> str:
    """"layers.7" for a place inside decoder layer 7, "visual.blocks.2" inside a block of the vision tower.

    Outside every layer: the part's module ("visual", "transformer", ...), or "model" for the text model.
    """
    while place.startswith(("model.", "language_model.")):
        place = place.split(".", 1)[1]
    found = _LAYER.search(place)
    first = place.split(".")[0]
    return found[1] if found else first if first in _PARTS else "model"


@dataclass
class Row:
    """One fusion. `expected` and `proved` count sites by scope; `refused` holds one reason a site not taken.

    Gains are microseconds a token. timings: how each distinct site fared on the device, as JSON; empty where none was timed.
    """

    fusion: str
    expected: dict[str, int] = field(default_factory=dict)
    proved: dict[str, int] = field(default_factory=dict)
    taken: int = 0
    refused: list[dict[str, str]] = field(default_factory=list)
    predicted_us: float | None = None
    measured_us: float | None = None
    timings: list[dict[str, Any]] = field(default_factory=list)

    @property
    def basis(self) -> str:
        """What decided, by gain, whether sites were taken: "measured" or "predicted"."""
        return "measured" if self.timings else "predicted"

    def to_json(self) -> dict[str, Any]:
        return {"fusion": self.fusion, "expected": sum(self.expected.values()), "proved": sum(self.proved.values()),
                "taken": self.taken, "refused": self.refused, "predicted_us": self.predicted_us,
                "measured_us": self.measured_us, "basis": self.basis, "timings": self.timings,
                "by_scope": {"expected": self.expected, "proved": self.proved}}


@dataclass
class Ledger:
    """All rows, by fusion name."""

    rows: dict[str, Row] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def row(self, fusion: str) -> Row:
        return self.rows.setdefault(fusion, Row(fusion))

    def expect(self, promises: dict[str, dict[str, int]]) -> None:
        """promises: scope -> fusion -> number of sites."""
        for scope, counts in promises.items():
            for fusion, count in counts.items():
                if count:
                    self.row(fusion).expected[scope] = count

    def prove(self, fusion: str, places: Iterable[str]) -> None:
        """Count proved sites of `fusion` by the scope of their places."""
        self.row(fusion).proved = dict(Counter(scope_of(p) for p in places))

    def check(self, nearest: dict[str, dict[str, str]]) -> None:
        """Note in `broken` each scope that proved fewer sites than promised.

        nearest: fusion -> scope -> a sentence about the nearest miss there.
        """
        for row in self.rows.values():
            for scope, count in row.expected.items():
                proved = row.proved.get(scope, 0)
                if proved < count:
                    miss = nearest.get(row.fusion, {}).get(scope, "no step resembles it")
                    self.broken.append(f"{scope} promises {count} `{row.fusion}`, proved {proved}\n  nearest: {miss}")

    def demand(self, finished: Any) -> Any:
        """`finished`, if every promise was kept. Raises PromiseBroken, which holds it, if not."""
        if self.broken:
            more = f"\n... and {len(self.broken) - 4} more" if len(self.broken) > 4 else ""
            error = PromiseBroken("\n".join(self.broken[:4]) + more)
            error.finished = finished
            raise error
        return finished

    def surplus(self) -> list[str]:
        """Sentences about scopes that proved more than promised: worth a note, not an error."""
        return [f"{row.fusion}: {scope} proved {count}, promised {row.expected.get(scope, 0)}"
                for row in self.rows.values() for scope, count in row.proved.items()
                if count > row.expected.get(scope, 0)]

    def text(self) -> str:
        """One line a fusion that is expected or found."""
        return "\n".join(
            f"{r.fusion}: expected {sum(r.expected.values())}, proved {sum(r.proved.values())}, taken {r.taken}, "
            f"refused {len(r.refused)}" for _, r in sorted(self.rows.items()) if r.expected or r.proved)

    def to_json(self) -> list[dict[str, Any]]:
        return [self.rows[name].to_json() for name in sorted(self.rows)]
