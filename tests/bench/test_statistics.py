"""What samples are said to mean: percentiles, intervals that cover what they promise, drift, ratios."""

from __future__ import annotations

import random
import statistics as python_statistics

import numpy
import pytest

from glmc.bench.statistics import LEVEL, RUNS, drift, interval, percentile, ratio, spread, summarise


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_percentiles_are_numpys(n):
    samples = numpy.random.default_rng(n).exponential(size=n).tolist()
    for share in (0, 10, 50, 90, 99, 100):
        assert percentile(samples, share) == pytest.approx(numpy.percentile(samples, share))


@pytest.mark.parametrize("n", [8, 10, 30, 100])
@pytest.mark.parametrize("draw", ["expovariate", "heavy"])
def test_the_interval_covers_the_median_as_often_as_it_says(n, draw):
    source = random.Random(n)
    one = (lambda: source.expovariate(1)) if draw == "expovariate" else (lambda: source.paretovariate(1.1))
    true = python_statistics.median(one() for _ in range(40_001))
    covered, sure = 0, 1.0
    for _ in range(1500):
        low, high, sure = interval([one() for _ in range(n)])
        covered += low <= true <= high
    assert sure >= LEVEL
    assert covered / 1500 >= LEVEL - 0.01


def test_few_samples_say_how_sure_they_are():
    assert interval([3, 1, 2]) == (1, 3, 0.75)
    assert interval([5]) == (5, 5, 0.0)
    low, high, sure = interval(list(range(7)))
    assert (low, high) == (0, 6)
    assert sure < LEVEL


def test_drift_and_spread():
    assert drift([1, 1, 1, 1.1, 1.1, 1.1]) == pytest.approx(0.1)
    assert drift([1, 2, 3]) == 0
    assert spread([1, 1, 1, 1]) == 0
    assert spread([1, 2, 3, 4, 5]) == pytest.approx(2 / 3)


def test_a_summary_takes_its_interval_from_the_rounds():
    pooled = [1.0] * 90 + [50.0] * 10
    found = summarise(pooled, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0])
    assert (found.median, found.p99, found.n) == (1.0, 50.0, 100)
    assert (found.low, found.high) == pytest.approx((1 - RUNS, 2 * (1 + RUNS)))
    assert found.mean == pytest.approx(5.9)


def test_a_ratio_repeats_and_finds_what_was_planted():
    source = random.Random(1)
    below = [source.gauss(1, 0.02) for _ in range(30)]
    above = [1.1 * source.gauss(1, 0.02) for _ in range(30)]
    found = ratio(above, below)
    assert found == ratio(above, below)
    assert found.low < 1.1 < found.high
    assert found.low > 1.05


def test_what_both_saw_cancels_in_a_paired_ratio():
    source = random.Random(2)
    weather = [source.uniform(1, 2) for _ in range(30)]
    paired, apart = (ratio([1.05 * w for w in weather], weather, paired=p) for p in (True, False))
    assert paired.high - paired.low < 1e-6
    assert apart.high - apart.low > 0.1
    assert paired.low == pytest.approx(1.05)


def test_a_drift_widens_the_interval():
    source = random.Random(3)
    flat = [source.gauss(1, 0.02) for _ in range(60)]
    moving = [value * (1 + 0.1 * i / 60) for i, value in enumerate(flat)]
    wide, narrow = ratio(moving, flat), ratio(flat, flat)
    assert wide.high - wide.low > 1.3 * (narrow.high - narrow.low)
