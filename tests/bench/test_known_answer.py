"""Planted delays come out as they were planted, outliers where they belong, and looking costs nothing to speak of."""

from __future__ import annotations

import time

import benching
import pytest

from glmc.bench.sample import Sample, watch, watching_seconds
from glmc.bench.work import Work


def test_planted_delays_are_measured():
    (found,) = benching.reported({"glmc": benching.steady})["results"]
    for metric, planted in (("ttft", 50), ("tpot", 10), ("itl", 10), ("e2el", 50 + 31 * 10)):
        for what in ("mean", "median", "p90", "p99"):
            assert found[f"{what}_{metric}_ms"] == pytest.approx(planted, rel=0.02)
    assert found["output_throughput"] == pytest.approx(32 / 0.360, rel=0.02)
    prompt, answer = found["llama_bench"]
    assert (prompt["test"], answer["test"]) == ("pp128", "tg31 @ d128")
    assert prompt["avg_ts"] == pytest.approx(128 / 0.050, rel=0.02)
    assert answer["avg_ts"] == pytest.approx(100, rel=0.02)


def test_planted_outliers_are_in_p99_and_not_in_the_median():
    def delays(request, token):
        return 0.200 if token % 20 == 7 else benching.steady(request, token)

    (found,) = benching.reported({"glmc": delays})["results"]
    assert found["median_itl_ms"] == pytest.approx(10, rel=0.02)
    assert found["p90_itl_ms"] == pytest.approx(10, rel=0.02)
    assert found["p99_itl_ms"] == pytest.approx(200, rel=0.02)


def test_rows_of_a_batch_have_their_own_tokens():
    (found,) = benching.reported({"glmc": benching.steady}, (Work(16, 8, 3),))["results"]
    assert found["completed"] == 30
    assert found["total_output_tokens"] == 240
    assert found["median_tpot_ms"] == pytest.approx(10, rel=0.02)
    assert found["test"] == "pp16+tg8 b3"


def test_real_time_is_measured():
    """Tokens are due at fixed times, so that a late wake-up does not add up."""
    def begin():
        began = time.perf_counter()
        for token in range(41):
            while (left := began + 0.02 + 0.005 * token - time.perf_counter()) > 0:
                time.sleep(left)
            yield 0

    # Of five the nearest: what is measured wrongly is wrong in all, a busy machine is not.
    assert min(abs(watch(begin, 1).rows[0].tpot / 0.005 - 1) for _ in range(5)) < 0.02


def test_looking_takes_less_than_a_hundredth_of_a_quick_token():
    assert min(watching_seconds() for _ in range(5)) < 0.01 * 1e-3


def test_a_sample_survives_its_json():
    sample = benching.rows((0.1, 0.2, 0.4), (0.1, 0.3))
    assert Sample.from_json(sample.to_json()) == sample
    assert sample.rows[0].itl == pytest.approx([0.1, 0.2])
    assert sample.rows[1].tpot == pytest.approx(0.2)
    assert sample.seconds == 0.4
