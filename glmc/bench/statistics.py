"""What samples say: a median with a distribution-free interval, percentiles, spread and drift, the ratio of two medians."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

LEVEL = 0.99
"""How sure an interval of a median is."""
RUNS = 0.0125
"""Two runs of one thing differ by up to this share for the memory that each happened to get and the like, which no repetition
inside a run shows. Every interval that is to hold for another run too is wider by it, on each side."""
_DRAWS, _SEED = 4000, 1


@dataclass(frozen=True)
class Summary:
    """Of samples in one unit. low, high: the interval of the median, sure to `level`, wider by RUNS. spread: the middle half
    over the median. drift: the second half's median over the first half's, less one. std: of the population."""

    n: int
    mean: float
    std: float
    median: float
    p90: float
    p99: float
    low: float
    high: float
    level: float
    spread: float
    drift: float

    def to_json(self) -> dict[str, Any]:
        return {name: value if name == "n" else float(f"{value:.6g}") for name, value in asdict(self).items()}


def percentile(samples: Sequence[float], share: float) -> float:
    """The value below which `share` percent of the samples lie, linear between two neighbours, as numpy has it."""
    ordered = sorted(samples)
    place = (len(ordered) - 1) * share / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def interval(samples: Sequence[float], level: float = LEVEL) -> tuple[float, float, float]:
    """(low, high, how sure): an interval of the median between two order statistics, whatever the distribution.

    How sure is at least `level`, or, of fewer samples than that takes, what least and greatest are sure to.
    """
    ordered, n = sorted(samples), len(samples)
    sure, tail = 1 - 2 * 0.5**n, 0.0
    rank = 0
    for lower in range((n - 1) // 2 + 1):
        tail += math.comb(n, lower) * 0.5**n
        if 1 - 2 * tail < level:
            break
        rank, sure = lower, 1 - 2 * tail
    return ordered[rank], ordered[n - 1 - rank], max(sure, 0.0)


def summarise(samples: Sequence[float], rounds: Sequence[float] | None = None) -> Summary:
    """rounds: a value a round, in their order, where samples of one round are not independent; they make the interval."""
    by_round = list(samples if rounds is None else rounds)
    middle = statistics.median(samples)
    low, high, sure = interval(by_round)
    return Summary(len(samples), statistics.fmean(samples), statistics.pstdev(samples), middle, percentile(samples, 90),
                   percentile(samples, 99), low * (1 - RUNS), high * (1 + RUNS), sure, spread(by_round), drift(by_round))


def spread(samples: Sequence[float]) -> float:
    """The middle half of the samples over their median."""
    middle = statistics.median(samples)
    return (percentile(samples, 75) - percentile(samples, 25)) / middle if middle else 0.0


def drift(samples: Sequence[float]) -> float:
    """How much more the second half's median is than the first half's, as a share; 0 of fewer than four samples."""
    half = len(samples) // 2
    if half < 2:
        return 0.0
    first = statistics.median(samples[:half])
    return statistics.median(samples[-half:]) / first - 1 if first else 0.0


@dataclass(frozen=True)
class Ratio:
    """A median over another. low, high: its interval, sure to `level`."""

    ratio: float
    low: float
    high: float
    level: float

    def to_json(self) -> dict[str, float]:
        return {name: round(value, 5) for name, value in asdict(self).items()}


def ratio(above: Sequence[float], below: Sequence[float], level: float = LEVEL, paired: bool = False) -> Ratio:
    """The median of `above` over that of `below`, with an interval from a bootstrap of blocks of neighbouring rounds.

    Neighbours stay together, so that a drift widens the interval. paired: the two took turns in one run, and round i of one is
    drawn with round i of the other; two runs' interval is wider by RUNS. The draws come from a seed, so that the same samples
    give the same interval.
    """
    import numpy

    draw = numpy.random.default_rng(_SEED)
    first, second = numpy.asarray(above, float), numpy.asarray(below, float)
    if paired and len(first) == len(second):
        chosen = _blocks(draw, len(first))
        tops, bottoms = numpy.median(first[chosen], axis=1), numpy.median(second[chosen], axis=1)
    else:
        tops = numpy.median(first[_blocks(draw, len(first))], axis=1)
        bottoms = numpy.median(second[_blocks(draw, len(second))], axis=1)
    tail = (1 - level) / 2
    low, high = map(float, numpy.quantile(tops / bottoms, [tail, 1 - tail]))
    if not paired:
        low, high = low * (1 - RUNS), high * (1 + RUNS)
    return Ratio(statistics.median(above) / statistics.median(below), low, high, level)


def _blocks(draw: Any, n: int) -> Any:
    """Indices [draws, n] of blocks of neighbours, about the cube root of n long, that wrap around."""
    import numpy

    length = max(1, round(n ** (1 / 3)))
    starts = draw.integers(0, n, (_DRAWS, -(-n // length)))
    return ((starts[:, :, None] + numpy.arange(length)) % n).reshape(_DRAWS, -1)[:, :n]
