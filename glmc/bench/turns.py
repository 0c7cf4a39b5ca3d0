"""Who is measured takes turns, in an order that shifts, so that what the machine does meanwhile meets all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any


def order(names: Sequence[str], number: int) -> list[str]:
    """Round `number`'s order: A B C, then B C A, and so on."""
    start = number % len(names)
    return [*names[start:], *names[:start]]


def rounds(names: Sequence[str], kept: int, warm: int) -> Iterator[tuple[int, list[str]]]:
    """(number, order) of each round; the first `warm` have negative numbers and are not kept."""
    for number in range(-warm, kept):
        yield number, order(names, number)


def interleave(contenders: dict[str, Callable[[], float]], kept: int, warm: int = 1) -> dict[str, list[float]]:
    """Ask each contender for a sample in turn, `kept` times. The first `warm` rounds are not kept."""
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for number, turn in rounds(list(contenders), kept, warm):
        for name in turn:
            value = contenders[name]()
            if number >= 0:
                samples[name].append(value)
    return samples


def seconds_of(call: Callable[[], Any], count: int) -> list[float]:
    """The seconds of each of `count` calls, after one that is not kept."""
    call()
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return taken


def summary(samples: list[float], digits: int = 4) -> dict[str, Any]:
    """Median, least, most, spread ((most - least) / median) and the samples themselves."""
    middle = statistics.median(samples)
    return {"median": round(middle, digits), "min": round(min(samples), digits), "max": round(max(samples), digits),
            "spread": round((max(samples) - min(samples)) / middle, 4) if middle else 0.0,
            "samples": [round(value, digits) for value in samples]}
