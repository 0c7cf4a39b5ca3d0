"""`glmc bench` from the command line to its files, with real processes; cut short; on an artefact that fails its checks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import models
import pytest
from typer.testing import CliRunner

from glmc.bench.compare import read
from glmc.cli.main import app

QUICK = ("--input-len", "8", "--output-len", "4", "--num-iters-warmup", "1", "--threads", "1")


@pytest.fixture(scope="module")
def artifact():
    return models.made("glm4_moe", "bfloat16", target="cpu").out


@pytest.fixture(scope="module")
def folder(artifact, tmp_path_factory):
    """The report of two rounds."""
    place = tmp_path_factory.mktemp("bench")
    done = CliRunner().invoke(app, ["bench", str(artifact), "-o", str(place / "out"), *QUICK, "--batch-size", "1,2",
                                    "--num-iters", "2", "--cold-starts", "1", "--profile"])
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"{place / 'out'}\n"
    return place / "out"


def test_the_files_of_a_report(folder):
    made = read(folder / "report.json")
    assert made["complete"]
    assert [one["name"] for one in made["contenders"]] == ["glmc"]
    assert [(one["test"], one["rounds_kept"]) for one in made["results"]] == [("pp8+tg4", 2), ("pp8+tg4 b2", 2)]
    for one in made["results"]:
        assert all(len(row["events"]) == 4 for rows in one["rounds"] for row in rows)
        assert one["metrics"]["tpot"]["of_bound"] > 0
    (one,) = made["contenders"]
    assert one["peak_memory"]["host_bytes"] > 10**7
    assert list(one["cold_start"]["phases"]) == ["process", "import", "open", "weights", "place", "first_token"]
    assert min(phase["median"] for phase in one["cold_start"]["phases"].values()) >= 0
    assert "## pp8+tg4 b2" in (folder / "report.md").read_text()
    assert "<svg" in (folder / "report.html").read_text()
    assert len(json.loads((folder / "trace.json").read_text())["traceEvents"]) > 20
    assert made["profile"]["steps"][0]["regions"]


def test_a_report_is_never_overwritten(artifact, folder):
    done = CliRunner().invoke(app, ["bench", str(artifact), "-o", str(folder)])
    assert done.exit_code == 2
    assert "there already" in done.stderr


def test_an_interrupted_run_keeps_what_it_has(artifact, tmp_path):
    command = [sys.executable, "-m", "glmc", "bench", str(artifact), "-o", str(tmp_path / "out"), *QUICK, "--num-iters", "9999"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONUNBUFFERED": "1"})
    for line in running.stderr:
        if line.startswith("round 3 of"):
            break
    running.send_signal(signal.SIGINT)
    out, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    made = read(tmp_path / "out" / "report.json")
    assert made["interrupted"].startswith("interrupted after ")
    assert made["results"][0]["rounds_kept"] >= 3
    assert "partial: interrupted" in (tmp_path / "out" / "report.md").read_text()
    assert out == f"{tmp_path / 'out'}\n"


def test_a_damaged_artefact_is_not_measured(artifact, tmp_path):
    shutil.copytree(artifact, tmp_path / "bad.glmc")
    shard = next((tmp_path / "bad.glmc").glob("weights-*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    done = CliRunner().invoke(app, ["bench", str(tmp_path / "bad.glmc"), *QUICK, "--json"])
    assert (done.exit_code, json.loads(done.stdout)["error"]["code"]) == (4, "damaged-artifact")


@pytest.mark.parametrize(("words", "said"), [
    (["--input-len", "x"], "no list of whole numbers"), (["--threads", "4096"], "out of range"),
    (["--num-iters", "0"], "at least 1"), (["--against", "nobody"], "no contender is called so"),
    (["--batch-size", "99"], "max_batch"),
    (["--input-len", "4000"], "max_len"), (["--against", "eager"], "--checkpoint FOLDER"),
])
def test_what_cannot_be_asked_is_refused_before_anything_runs(artifact, words, said):
    done = CliRunner().invoke(app, ["bench", str(artifact), *QUICK, *words])
    assert done.exit_code == 2
    assert said in done.stderr


def test_another_checkpoint_is_other_work(artifact):
    _, _, other = models.published("glm4", "bfloat16")
    done = CliRunner().invoke(app, ["bench", str(artifact), *QUICK, "--against", "eager", "--checkpoint", str(other)])
    assert done.exit_code == 2
    assert "from another checkpoint" in done.stderr
