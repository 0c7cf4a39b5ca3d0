"""Runs of several processes, in which one rank fails, dies, freezes or lies: all end in time, and the culprit is named."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import models
import picturing
import psutil
import pytest

import glmc
from glmc.errors import RankError, RequestOutOfBounds, UsageError
from glmc.runtime.supervise import Supervised

BENCH = Path(__file__).parents[2] / "bench"
DEADLINE = 20.0
ASKED = {"prompt": "hello", "max_new_tokens": 6, "raw": True}


@pytest.fixture(scope="module")
def faults():
    """bench/faults.py, which also measures the whole matrix."""
    sys.path.append(str(BENCH))
    spec = importlib.util.spec_from_file_location("faults_matrix", BENCH / "faults.py")
    sys.modules["faults_matrix"] = made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    sys.path.remove(str(BENCH))
    return made


@pytest.fixture(scope="module")
def out():
    return models.made("glm4", target="cpu", max_batch=1).out


@pytest.fixture(scope="module")
def subject(faults, out):
    return faults.text(out)


@pytest.fixture(scope="module")
def picture(faults, tmp_path_factory):
    return faults.picture(picturing.made().model.artifact.folder, tmp_path_factory.mktemp("given"))


@pytest.fixture(scope="module")
def wanted(subject):
    return subject.wanted


def passes(faults, subject, cell, number, deadline=DEADLINE, ranks=2):
    found = faults.cell(subject, *cell, deadline, number, ranks)
    assert found["passes"], found


@pytest.mark.parametrize("cell", [("kill", "decode", 1), ("skip", "decode", 0), ("skip", "close", 1), ("disagree", "start", 1),
                                  ("exit0", "close", 0)], ids=str)
def test_a_fault_ends_the_run_and_names_its_rank(faults, subject, cell):
    passes(faults, subject, cell, 10**9 + os.getpid() * 100 + sum(map(ord, str(cell))) % 97)


@pytest.mark.parametrize("cell", [("raise", "prior", 0), ("disagree", "prior", 1), ("skip", "denoise", 1),
                                  ("slow", "pixels", 0)], ids=str)
def test_a_fault_ends_a_picture_and_names_its_rank(faults, picture, cell):
    passes(faults, picture, cell, 3 * 10**9 + os.getpid() * 100 + sum(map(ord, str(cell))) % 97, 8.0)


def test_a_frozen_rank_is_named_at_the_deadline(faults, subject):
    passes(faults, subject, ("freeze", "decode", 0), 2 * 10**9 + os.getpid(), 8.0)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("which", ["subject", "picture"])
def test_every_fault_in_every_phase(faults, request, which, ranks):
    subject = request.getfixturevalue(which)
    found = faults.matrix(subject, faults.cells(ranks, subject.phases), 10.0 * ranks / 2, 2, ranks)
    assert all(cell["passes"] for cell in found), [cell for cell in found if not cell["passes"]]


def run(out, *more, **environment):
    return subprocess.run([sys.executable, "-m", "glmc", "run", str(out), "--prompt", "hello", "--raw", "--max-new-tokens", "6",
                           "--ranks", "2", *more], capture_output=True, text=True, timeout=120, check=False,
                          env={**os.environ, **environment})


def test_two_ranks_say_what_one_says_and_a_fault_is_told_by_exit_code(out, wanted):
    done = run(out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["token_ids"] == wanted
    done = run(out, GLMC_FAULT="rank=1,stage=load,kind=kill")
    assert (done.returncode, done.stdout) == (6, "")
    assert "rank 1" in done.stderr
    assert "SIGKILL" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_the_main_rank_refuses_keeps_its_class(out):
    with pytest.raises(RequestOutOfBounds) as fault:
        list(Supervised(out, {**ASKED, "prompt": "x" * 500}, 2, DEADLINE))
    assert fault.value.fault.ranks == (0,)
    assert "max_len" in str(fault.value)


def test_runs_at_once_do_not_meet(out, wanted):
    def one(_):
        made = Supervised(out, ASKED, 2, 60.0)
        assert "".join(made) is not None
        return made.result.token_ids

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(one, range(3))) == [wanted] * 3


@pytest.mark.parametrize(("ranks", "deadline"), [(1, 60), (65, 60), (2, 0), (2, float("nan"))])
def test_what_makes_no_sense_is_refused(out, ranks, deadline):
    with pytest.raises(UsageError):
        Supervised(out, ASKED, ranks, deadline)


PARENT = """
import sys
from glmc.runtime.supervise import Supervised
list(Supervised(sys.argv[1], {"prompt": "hello", "max_new_tokens": 6, "raw": True, "seed": int(sys.argv[2])}, 2, 100.0))
"""


def workers(number: int) -> list[psutil.Process]:
    return [one for one in psutil.process_iter(["cmdline"]) if f'"seed": {number}' in " ".join(one.info["cmdline"] or ())]


def until(true, seconds=30.0):
    ends = time.monotonic() + seconds
    while not (got := true()):
        assert time.monotonic() < ends, "it does not come"
        time.sleep(0.05)
    return got


@pytest.mark.parametrize(("how", "kind"), [(signal.SIGKILL, "freeze"), (signal.SIGKILL, "hang"), (signal.SIGINT, "hang")])
def test_no_rank_outlives_its_parent(out, tmp_path, how, kind):
    number, mark = 3 * 10**9 + os.getpid(), tmp_path / "struck"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(out), str(number)], stderr=subprocess.DEVNULL,
                              env={**os.environ, "GLMC_FAULT": f"rank=1,stage=start,kind={kind},mark={mark}"})
    until(mark.exists)
    ranks = workers(number)
    assert len(ranks) == 2
    listening = [c for rank in ranks for c in rank.net_connections() if c.status == psutil.CONN_LISTEN]
    assert listening
    assert all(c.laddr.ip == "127.0.0.1" for c in listening), listening
    parent.send_signal(how)
    parent.wait(10)
    until(lambda: not workers(number), 5.0)


def test_torchrun_starts_ranks_as_well(out, wanted):
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint",
             "127.0.0.1:0", "-m", "glmc.runtime", str(out), "--prompt", "hello", "--raw", "--max-new-tokens", "6"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip("\n") == glmc.load(out).generate("hello", max_new_tokens=6, raw=True).text.strip("\n")


def test_a_rank_without_a_place_is_told_so(out):
    done = subprocess.run([sys.executable, "-m", "glmc.runtime", str(out), "--prompt", "x"], capture_output=True, text=True,
                          timeout=60, check=False, env={k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")})
    assert done.returncode == 2
    assert "torchrun" in done.stderr


@pytest.mark.parametrize("text", ["rank=1", "rank=x,stage=load,kind=kill", "rank=0,stage=nowhere,kind=kill", "kill"])
def test_a_fault_that_cannot_be_read_is_refused(monkeypatch, text):
    from glmc.runtime.faults import Fault

    monkeypatch.setenv("GLMC_FAULT", text)
    with pytest.raises(UsageError):
        Fault.asked()


def test_a_retry_needs_no_cleaning_up(out, wanted, monkeypatch):
    monkeypatch.setenv("GLMC_FAULT", "rank=0,stage=prompt,kind=kill")
    with pytest.raises(RankError):
        list(Supervised(out, ASKED, 2, DEADLINE))
    monkeypatch.delenv("GLMC_FAULT")
    again = Supervised(out, ASKED, 2, DEADLINE)
    list(again)
    assert again.result.token_ids == wanted
