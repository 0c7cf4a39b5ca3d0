"""One request as it was answered: when each token was there, and the latencies that serving people know."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """Of one row. events: seconds after the request at which something arrived, the first token first; of who only tells totals
    (first token, last token). streamed: whether every event was seen. tokens: how many tokens were made."""

    events: tuple[float, ...]
    tokens: int
    streamed: bool = True

    @property
    def ttft(self) -> float:
        """Time to first token, seconds."""
        return self.events[0]

    @property
    def e2el(self) -> float:
        """End-to-end latency: to the last token, seconds."""
        return self.events[-1]

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first; None of one token."""
        return (self.e2el - self.ttft) / (self.tokens - 1) if self.tokens > 1 else None

    @property
    def itl(self) -> list[float]:
        """Inter-token latencies: the gaps between events; none where they were not seen."""
        return [b - a for a, b in zip(self.events, self.events[1:], strict=False)] if self.streamed else []


@dataclass(frozen=True)
class Sample:
    """A request's rows. seconds: until the last row had its last token."""

    rows: tuple[Row, ...]

    @property
    def seconds(self) -> float:
        return max(row.e2el for row in self.rows)

    def to_json(self) -> list[dict[str, Any]]:
        return [{"events": [round(at, 7) for at in row.events], "tokens": row.tokens, "streamed": row.streamed}
                for row in self.rows]

    @classmethod
    def from_json(cls, rows: list[dict[str, Any]]) -> Sample:
        return cls(tuple(Row(tuple(row["events"]), row["tokens"], row["streamed"]) for row in rows))


def watch(begin: Callable[[], Iterable[int]], rows: int, now: Callable[[], float] = time.perf_counter) -> Sample:
    """Start a request and note when each token is there. begin: gives the row of each token, as it comes.

    A look at the clock and an append a token: nothing else happens while the request runs.
    """
    seen: list[tuple[int, float]] = []
    note = seen.append
    began = now()
    for row in begin():
        note((row, now()))
    events: list[list[float]] = [[] for _ in range(rows)]
    for row, at in seen:
        events[row].append(at - began)
    return Sample(tuple(Row(tuple(times), len(times)) for times in events))


def watching_seconds(tokens: int = 20_000) -> float:
    """What noting one token takes, in seconds: a request that does nothing but count, over the same count alone."""
    began = time.perf_counter()
    for _ in iter([0] * tokens):
        pass
    alone = time.perf_counter() - began
    began = time.perf_counter()
    watch(lambda: iter([0] * tokens), 1)
    return max(0.0, time.perf_counter() - began - alone) / tokens
