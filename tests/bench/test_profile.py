"""A step's profile: every call of every region, natively and interpreted, and the trace that Perfetto opens."""

from __future__ import annotations

import benching
import models
import pytest

from glmc.bench.profile import Place, profile, told
from glmc.bench.trace_events import trace_events
from glmc.bench.work import Work


@pytest.mark.parametrize("target", ["cpu", "fx"])
def test_each_region_and_kernel_of_a_step_is_timed(target):
    made = models.made("glm4_moe", "bfloat16" if target == "cpu" else "float32", target=target)
    session = type(made.session)(made.session.artifact)  # a profiled model is measured no more
    found = profile(session, Work(12, 2))
    decode, prefill = found["steps"]
    assert (found["engine"], decode["name"], prefill["name"]) == ("native" if target == "cpu" else "fx", "decode", "prefill")
    for step in (decode, prefill):
        calls = {row["region"]: row["calls"] for row in step["regions"]}
        assert set(calls) == set(session.program.regions)
        assert sum(row["share"] for row in step["regions"]) == pytest.approx(1, abs=1e-3)
        assert 0 < step["inside_us"] <= step["us"] * 1.02
        assert len(step["timeline"]) == sum(calls.values()) == sum(row["calls"] for row in step["ops"])
        layers = [step for step in session.program.steps if step.region.startswith("layer")]
        kernels = [row for row in step["kernels"] if "rms_norm" in row["kernel"] and row["region"].startswith("layer")]
        assert sum(row["calls"] for row in kernels) >= len(layers)
    assert (decode["tokens"], prefill["tokens"]) == (1, 12)


def test_the_trace_is_of_complete_events_inside_their_regions():
    trace = trace_events(benching.PROFILE)
    spans = [one for one in trace["traceEvents"] if one["ph"] == "X"]
    regions, calls = ([one for one in spans if one["tid"] == thread] for thread in (1, 2))
    found = [(one["name"], one["ts"], one["dur"]) for one in regions]
    assert found == [("layer_1", 0, 10), ("layer_1", 10, 10), ("head_2", 20, 7)]
    assert [one["ts"] for one in calls] == [0, 10, 20]
    assert {one["ph"] for one in trace["traceEvents"]} == {"X", "M"}
    names = {one["args"]["name"] for one in trace["traceEvents"] if one["ph"] == "M"}
    assert {"regions", "calls"} < names


def test_a_stray_step_is_left_out_of_the_means():
    place = Place("layer_1", "linear(o)", "linear")
    taken = [([(place, 1e-6)], 2e-6)] * 8 + [([(place, 1.0)], 1.0)] * 2
    found = told("decode", 1, 0, taken)
    assert (found["us"], found["inside_us"], found["samples"]) == (2.0, 1.0, 10)
