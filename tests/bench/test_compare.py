"""Two reports: other work is refused by name, planted changes are found, and noise is not."""

from __future__ import annotations

import copy
import json

import benching
import pytest
from typer.testing import CliRunner

from glmc.bench.compare import FASTER, FEW, NOISE, SLOWER, compare, differences, read
from glmc.cli.main import app
from glmc.errors import OtherWork, ReportError

ROUNDS = 30
PAIRS = 20


@pytest.fixture(scope="module")
def pairs():
    """(first, the same again, 5 % slower) of each pair, with noise as a real machine has it."""
    work = (benching.Work(32, 16),)
    return [tuple(benching.reported({"glmc": benching.noisy(3 * pair + i, scale)}, work, ROUNDS)
                  for i, scale in enumerate((1.0, 1.0, 1.05))) for pair in range(PAIRS)]


def test_a_planted_slowdown_of_five_percent_is_found_each_time(pairs):
    assert [compare(first, slower).verdict for first, _, slower in pairs] == [SLOWER] * PAIRS


def test_the_same_again_is_noise_but_once(pairs):
    assert [compare(first, second).verdict for first, second, _ in pairs].count(NOISE) >= PAIRS - 1


def test_two_runs_of_one_thing_lie_in_each_others_intervals(pairs):
    """Medians within 3 %, and each inside the other's interval, as far as the planted noise goes."""
    far, inside = [], []
    for reports in pairs:
        for metric in ("ttft", "tpot", "itl", "e2el"):
            one, two = (report["results"][0]["metrics"][metric] for report in reports[:2])
            far.append(abs(two["median"] / one["median"] - 1))
            inside.append(one["low"] < two["median"] < one["high"] and two["low"] < one["median"] < two["high"])
    assert sorted(far)[-3] < 0.03
    assert inside.count(False) <= 4


def test_a_speedup_is_found_too(pairs):
    first, _, slower = pairs[0]
    assert compare(slower, first).verdict == FASTER


@pytest.fixture(scope="module")
def made():
    return benching.reported({"glmc": benching.steady, "eager": benching.steady}, num_iters=8)


@pytest.mark.parametrize(("part", "name", "value"), [
    ("work", "source", "e" * 64), ("work", "dtype", "float32"), ("work", "quant", "int8"), ("work", "threads", 1),
    ("work", "device", "cuda"), ("work", "requests", [{"input_len": 9, "output_len": 32, "batch_size": 1}]),
    ("machine", "cpu", "another CPU"), ("machine", "cores", 64), ("machine", "cpu_flags", []),
])
def test_other_work_is_refused_and_named(made, part, name, value):
    other = copy.deepcopy(made)
    other[part][name] = value
    with pytest.raises(OtherWork, match=f"{part}.{name}") as fault:
        compare(made, other)
    assert str(value) in fault.value.found
    assert differences(made, made) == []


def test_what_only_weakens_it_is_noted(made):
    other = copy.deepcopy(made)
    other["machine"]["python"] = "3.99"
    other["artifact"] |= {"digest": "9" * 64, "ledger": [{**benching.LEDGER[0], "taken": 0}]}
    other["probe"]["read_gb_per_second"] = 9.0
    other["interrupted"] = "interrupted after 8 of 30 rounds"
    notes = " / ".join(compare(made, other).notes)
    for said in ("python: ", "3.99", "rms_norm taken 2 and 0 times", "20 GB/s in the first and 9", "the second is partial"):
        assert said in notes


def test_too_few_rounds_say_nothing(made):
    few = benching.reported({"glmc": benching.steady, "eager": benching.steady}, num_iters=3)
    found = compare(made, few)
    assert {one.verdict for one in found.figures} == {FEW}
    assert found.verdict == FEW


def test_another_contender_is_shown_and_not_judged(made):
    slow = benching.reported({"glmc": benching.steady, "eager": lambda r, t: 2 * benching.steady(r, t)}, num_iters=8)
    found = compare(made, slow)
    assert found.verdict == NOISE
    assert {one.verdict for one in found.figures if not one.judged} == {SLOWER}


def written(tmp_path, **reports):
    for name, value in reports.items():
        (tmp_path / f"{name}.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return [str(tmp_path / f"{name}.json") for name in reports]


def test_the_exit_code_is_for_ci(tmp_path, pairs, made):
    first, _, slower = pairs[0]
    a, b = written(tmp_path, a=first, b=slower)
    done = CliRunner().invoke(app, ["compare", a, b])
    assert done.exit_code == 8
    assert "verdict: slower" in done.stdout
    assert "the second report is slower" in done.stderr
    assert CliRunner().invoke(app, ["compare", a, a]).exit_code == 0
    told = CliRunner().invoke(app, ["compare", a, b, "--json"])
    assert told.exit_code == 8
    data = json.loads(told.stdout)
    assert (data["verdict"], data["error"]["code"], data["figures"][0]["metric"]) == ("slower", "slower", "ttft")
    (other,) = written(tmp_path, other=made)
    refused = CliRunner().invoke(app, ["compare", a, other, "--json"])
    assert (refused.exit_code, json.loads(refused.stdout)["error"]["code"]) == (2, "other-work")


@pytest.mark.parametrize(("change", "said"), [
    (lambda report: report.pop("probes"), "probes"), (lambda report: report.update(glmc_bench=2), "glmc_bench"),
    (lambda report: report["results"][0].update(metrics=3), r"results\[0\].metrics"),
    (lambda report: report["results"][0]["rounds"][0][0].pop("events"), r"rounds\[0\]\[0\].events"),
    (lambda report: report["work"].update(threads=True), "work.threads"),
])
def test_an_edited_report_is_refused_by_field(tmp_path, made, change, said):
    report = copy.deepcopy(made)
    change(report)
    (path,) = written(tmp_path, a=report)
    with pytest.raises(ReportError, match=said):
        read(path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"glmc_bench": NaN}', '{"glmc_bench": 1, "glmc_bench": 1}'])
def test_what_is_no_report_is_refused(tmp_path, text):
    (path,) = written(tmp_path, a=text)
    with pytest.raises(ReportError):
        read(path)
