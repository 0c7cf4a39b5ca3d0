"""The prepared run of everything on a GPU, with stand-ins for its commands: order, limits, needs, logs, the summary."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(autouse=True)
def beside(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu_all

    monkeypatch.setattr(gpu_all, "GRACE", 0.5)


def job(name, code, least=0.0, most=20.0, needs=()):
    from gpu_all import Job

    return Job(name, [sys.executable, "-c", code], least, most, needs)


def ran(jobs, out, seconds=60.0):
    from gpu_all import run

    outcomes = {one.name: one for one in run(jobs, out, seconds)}
    summary = json.loads((out / "summary.json").read_text())
    assert [one["name"] for one in summary["jobs"]] == [one.name for one in jobs]
    assert {one["name"]: one["status"] for one in summary["jobs"]} == {name: one.status for name, one in outcomes.items()}
    assert summary["waiting"] == []
    return outcomes


def test_each_has_its_log_and_how_it_ended(tmp_path):
    told = ran([job("good", "print('a figure')"), job("bad", "raise SystemExit('no such thing')")], tmp_path)
    assert (told["good"].status, told["good"].code, told["good"].why) == ("ok", 0, None)
    assert (told["bad"].status, told["bad"].code, told["bad"].why) == ("failed", 1, "no such thing")
    assert (tmp_path / "good.log").read_text() == "a figure\n"


def test_a_program_that_is_not_there_is_told_and_the_next_runs(tmp_path):
    from gpu_all import Job

    told = ran([Job("lost", ["/no/such/program"], 0, 1), job("good", "")], tmp_path)
    assert told["lost"].status == "failed"
    assert "/no/such/program" in told["lost"].why
    assert told["good"].status == "ok"


def test_one_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path):
    code = ("import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
            "print(child.pid, flush=True); time.sleep(60)")
    began = time.monotonic()
    told = ran([job("slow", code, most=1.5), job("next", "")], tmp_path)
    assert time.monotonic() - began < 20
    assert told["slow"].status == "ended"
    assert told["slow"].why == "it took more than 2 s"
    assert told["next"].status == "ok"
    child = int((tmp_path / "slow.log").read_text())
    for _ in range(50):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().rpartition(")")[2][:3]:
            return
        time.sleep(0.1)
    raise AssertionError("a child is left")


def test_what_no_longer_fits_is_left_out_and_a_smaller_one_still_runs(tmp_path):
    told = ran([job("large", "", least=500), job("small", "", least=0)], tmp_path, seconds=30)
    assert told["large"].status == "left out"
    assert re.fullmatch(r"\d+ s are left, it needs 500", told["large"].why)
    assert told["small"].status == "ok"


def test_the_limit_is_what_is_left(tmp_path):
    told = ran([job("slow", "import time; time.sleep(60)", most=100)], tmp_path, seconds=2)
    assert told["slow"].status == "ended"
    assert told["slow"].seconds < 10


def test_what_needs_one_that_failed_is_left_out(tmp_path):
    told = ran([job("make", "raise SystemExit(3)"), job("use", "", needs=("make",)), job("other", "", needs=("no",))], tmp_path)
    assert (told["use"].status, told["use"].why) == ("left out", "make: failed")
    assert (told["other"].status, told["other"].why) == ("left out", "no: not asked for")


def test_the_summary_is_there_after_each(tmp_path):
    look = f"import json; print(json.load(open({str(tmp_path / 'summary.json')!r}))['waiting'])"
    ran([job("first", ""), job("second", look)], tmp_path)
    assert (tmp_path / "second.log").read_text() == "['second']\n"


def test_every_prepared_command_is_one_that_its_script_takes(tmp_path):
    """Each script is asked with its own words: argparse refuses what it does not know; tests are there to be found."""
    from gpu_all import jobs

    names = set()
    for one in jobs(tmp_path / "out", tmp_path / "scratch"):
        assert one.least < one.most
        assert set(one.needs) <= names, "what is needed runs before"
        names.add(one.name)
        program, *words = one.command[1:]
        if program == "-m":
            for path in (w for w in words if w.startswith("tests/")):
                assert (BENCH.parent / path).exists()
        if program.startswith("-"):
            continue
        known = Path(program).read_text()
        for word in (w for w in words if w.startswith("--")):
            assert f'add_argument("{word}"' in known, (one.name, word)
    assert {"decode", "tests", "decode-peers", "kernels", "coded", "sanitizer", "air"} <= names


def test_the_command_line(tmp_path):
    done = subprocess.run([sys.executable, BENCH / "gpu_all.py", tmp_path / "out", "--seconds", "0", "--scratch", tmp_path],
                          capture_output=True, text=True, check=True, cwd=tmp_path, env=os.environ)
    told = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {one["status"] for one in told["jobs"]} == {"left out"}
    assert len(done.stdout.splitlines()) == len(told["jobs"])
