"""The command line: what goes to which stream, exit codes, JSON, hints, and that nothing light imports torch."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import glmc
from glmc import errors
from glmc.cli.main import app
from glmc.errors import GlmcError, PromiseBroken, WeightMissing

VERBS = ("plan", "compile", "run", "inspect", "verify", "bench", "compare", "explain", "doctor")
LEDGER = [
    {"fusion": "rms_norm", "expected": 3, "proved": 3, "taken": 1, "predicted_us": 2.5, "measured_us": None,
     "refused": [{"site": f"layers.{i}", "reason": f"shares steps with x at layers.{i}.norm"} for i in range(2)]},
    {"fusion": "moe_route", "expected": 0, "proved": 0, "taken": 0, "predicted_us": None, "measured_us": None,
     "refused": []},
]


def call(*words: str):
    """One command line in this process; the result has .exit_code, .stdout and .stderr."""
    return CliRunner().invoke(app, list(words))


def replace(monkeypatch, name, function):
    """Put `function` in the place of glmc.NAME without touching the attribute, which would import torch."""
    monkeypatch.setitem(vars(glmc), name, function)


def raising(fault):
    def function(*_, **__):
        raise fault
    return function


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "glm-tiny"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


# --- light verbs -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("words", [["--help"], ["--version"], ["explain", "GLMC_FUEL"], *([v, "--help"] for v in VERBS)])
def test_light_command_lines_import_no_torch(words):
    code = ("import sys\nfrom typer.testing import CliRunner\nfrom glmc.cli.main import app\n"
            f"done = CliRunner().invoke(app, {words!r})\n"
            "print(done.exit_code, *[m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["0"], done.stdout + done.stderr


def test_module_and_version():
    done = subprocess.run([sys.executable, "-m", "glmc", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"glmc {glmc.__version__}\n", "")


# --- usage -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("words", "said"), [
    ([], "no verb is given"),
    (["comple"], "did you mean `compile`?"),
    (["plan"], "Missing argument"),
    (["plan", ".", "--jsn"], "--json"),
    (["plan", ".", "--target", "cpuu"], "did you mean `cpu`?"),
    (["compile", ".", "-o", ".", "--target", "fx"], "there already"),
    (["compile", ".", "-o", "x", "--dtype", "float8"], "float8"),
    (["run", ".", "--prompt", "x", "--seed", "one"], "--seed"),
    (["explain", "rms_nrom"], "did you mean `rms_norm`?"),
    (["explain", "zzzzzz"], "known:"),
])
def test_usage_errors(words, said):
    done = call(*words)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    done = call(*words, "--json")
    if words:
        assert done.exit_code == 2
        assert said in json.dumps(json.loads(done.stdout)["error"])
        assert done.stderr == ""


def test_a_path_that_is_not_there_names_its_neighbour(checkpoint):
    done = call("plan", str(checkpoint.with_name("glm-tini")))
    assert done.exit_code == 2
    assert f"did you mean `{checkpoint}`?" in done.stderr.replace("\n", "")


@pytest.mark.parametrize("verb", [["run", "--prompt", "x"], ["inspect"], ["verify"]])
def test_a_checkpoint_is_not_an_artefact(checkpoint, verb):
    done = call(verb[0], str(checkpoint), *verb[1:])
    assert done.exit_code == 2
    assert "compile it first" in done.stderr


def test_an_artefact_is_not_a_checkpoint(tmp_path):
    for name in ("manifest.json", "program.json", "config.json"):
        (tmp_path / name).write_text("{}")
    done = call("compile", str(tmp_path), "-o", str(tmp_path / "out"))
    assert done.exit_code == 2
    assert "this is an artefact" in done.stderr


# --- what goes wrong inside a verb --------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", sorted({c for c in vars(errors).values() if isinstance(c, type)
                                         and issubclass(c, GlmcError) and c is not GlmcError}, key=lambda c: c.code))
def test_a_foreseen_fault_has_its_exit_code_and_no_traceback(monkeypatch, checkpoint, kind):
    replace(monkeypatch, "plan", raising(kind("it went wrong", file="a\x1b[31mb", found=3)))
    monkeypatch.setenv("GLMC_SHOW", "1")
    done = call("plan", str(checkpoint))
    assert (done.exit_code, done.stdout) == (kind.exit, "")
    assert "it went wrong" in done.stderr
    assert "\x1b" not in done.stderr
    assert "Traceback" not in done.stderr
    done = call("plan", str(checkpoint), "--json")
    told = json.loads(done.stdout)["error"]
    assert (done.exit_code, told["code"], told["exit"], told["found"]) == (kind.exit, kind.code, kind.exit, "3")


def test_an_unforeseen_fault_is_our_bug(monkeypatch, checkpoint):
    replace(monkeypatch, "plan", raising(ValueError("odd")))
    monkeypatch.delenv("GLMC_SHOW", raising=False)
    done = call("plan", str(checkpoint))
    assert (done.exit_code, done.stdout) == (70, "")
    assert done.stderr.startswith("internal error: ValueError: odd")
    assert "glmc doctor" in done.stderr
    assert "Traceback" not in done.stderr
    for level in ("1", "much"):
        monkeypatch.setenv("GLMC_SHOW", level)
        assert "Traceback" in call("plan", str(checkpoint)).stderr
    assert json.loads(call("plan", str(checkpoint), "--json").stdout)["error"]["code"] == "internal"


def test_a_full_disk_is_a_storage_error(monkeypatch, checkpoint):
    replace(monkeypatch, "plan", raising(OSError(errno.ENOSPC, "No space left on device", "big.bin")))
    done = call("plan", str(checkpoint), "--json")
    told = json.loads(done.stdout)["error"]
    assert (done.exit_code, told["code"], told["file"]) == (5, "storage", "big.bin")


def test_an_interrupt_says_one_line(monkeypatch, checkpoint):
    replace(monkeypatch, "plan", raising(KeyboardInterrupt()))
    done = call("plan", str(checkpoint))
    assert (done.exit_code, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize(("words", "code"), [
    (["explain", "rms_norm"], 0), (["explain", "rms_norm", "--json"], 0), (["--version"], 0),
    (["explain", "nothing-like-it", "--json"], 2),
])
def test_a_closed_pipe_is_quiet(words, code):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "glmc", *words], stdout=writer, stderr=subprocess.PIPE, text=True,
                          timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (code, "")


# --- plan, compile, run -------------------------------------------------------------------------------------------

def planned(source, target, progress, ranks=1, link="loopback"):
    """Stands for glmc.plan: reports stages, and prints what it should not."""
    progress("trace", 0, 1)
    progress("trace", 1, 1)
    print("noise")
    facts = {"model_type": "glm4", "layers": 2}
    return SimpleNamespace(
        architecture="Glm4ForCausalLM", **facts, parameters={"total": 12345, "active_per_token": 999},
        regions={"distinct": 3, "calls": 5}, ledger=SimpleNamespace(to_json=lambda: LEDGER), notes=["a note"],
        memory={"weights_bytes": 2048, "kv_bytes_per_token": 64, "peak_bytes": 1 << 20},
        roofline={"target": target, "bytes_per_token": 2048, "tokens_per_second": 10.5}, to_json=lambda: facts,
        media={"image": {"height": 56, "width": 84, "tokens": 6, "bytes": 4096},
               "video": {"frames": 8, "tokens": 40, "text_tokens": 99, "bytes": 8192}},
        forecast={"ranks": ranks, "link": link, "stages": [
            {"stage": "a token", "mode": "tensor_parallel", "seconds": 0.5, "one_rank_seconds": 1, "bound": "memory"}]})


def test_a_broken_promise_is_told_beside_the_plan(monkeypatch, checkpoint):
    def broken(*args, **kwargs):
        error = PromiseBroken("layers.0 promises 2 `rope`, proved 0")
        error.finished = planned(*args, **kwargs)
        raise error

    replace(monkeypatch, "plan", broken)
    done = call("plan", str(checkpoint))
    assert done.exit_code == PromiseBroken.exit == 3
    assert "rms_norm" in done.stdout, "the ledger is shown all the same"
    assert "layers.0 promises 2 `rope`" in done.stderr
    done = call("plan", str(checkpoint), "--json")
    told = json.loads(done.stdout)
    assert (done.exit_code, told["model_type"], told["error"]["code"]) == (3, "glm4", "promise-broken")


def test_plan_prints_tables_and_talks_on_stderr(monkeypatch, checkpoint):
    replace(monkeypatch, "plan", planned)
    done = call("plan", str(checkpoint))
    assert done.exit_code == 0
    for said in ("12,345", "2.0 KiB", "10.5 tokens/s on cpu", "84 x 56 pixels, 6 tokens", "8 frames, 40 tokens", "rms_norm",
                 "shares steps with x at layers.N.norm"):
        assert said in done.stdout
    assert "moe_route" not in done.stdout
    assert "noise" not in done.stdout
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["trace", "noise", "note"]
    assert json.loads(call("plan", str(checkpoint), "--json").stdout) == {"model_type": "glm4", "layers": 2}


def test_compile_prints_the_path_and_the_ledger_apart(monkeypatch, checkpoint, tmp_path):
    got = {}

    def compiled(source, out, **options):
        got.update(options)
        return SimpleNamespace(folder=Path(out), manifest={"digest": "d"}, files={},
                               json=lambda _: {"ledger": LEDGER, "notes": ["25 linked"]})

    replace(monkeypatch, "compile", compiled)
    out = str(tmp_path / "x.glmc")
    done = call("compile", str(checkpoint), "-o", out, "--max-len", "64")
    assert (done.exit_code, done.stdout) == (0, out + "\n")
    assert "rms_norm" in done.stderr
    assert "note: 25 linked" in done.stderr
    got.pop("progress")
    assert got == {"target": "cpu", "dtype": "auto", "quant": None, "max_len": 64, "max_batch": 1, "weights": "copy"}
    told = json.loads(call("compile", str(checkpoint), "-o", out, "--json").stdout)
    assert (told["path"], told["digest"], told["ledger"]) == (out, "d", LEDGER)
    replace(monkeypatch, "compile", raising(WeightMissing("gone")))
    assert call("compile", str(checkpoint), "-o", out).exit_code == 3


class Pieces:
    """Stands for the stream of Model.generate."""

    result = SimpleNamespace(text="Hi there", token_ids=[1, 2], finish_reason="length", prompt_tokens=4, seed=7,
                             timings={"first_token": 0.5, "decode": 0.25}, notes=["video 0: thinned"])

    def __iter__(self):
        return iter(["Hi", "", " there"])


@pytest.fixture
def generated(monkeypatch, tmp_path):
    """(folder, list that receives each call's prompt and options) with a model that says "Hi there"."""
    got = []

    def generate(prompt, **options):
        got.append((prompt, options))
        return Pieces()

    replace(monkeypatch, "load", lambda path, device: SimpleNamespace(generate=generate))
    return str(tmp_path), got


def test_run_streams_to_stdout_and_sums_up_on_stderr(generated):
    folder, got = generated
    done = call("run", folder, "--prompt", "hello")
    assert (done.exit_code, done.stdout) == (0, "Hi there\n")
    assert done.stderr == "note: video 0: thinned\n4 tokens in, 2 out (length), 4.0 tokens/s, first token after 0.500 s\n"
    assert got[0][0] == "hello"
    assert got[0][1]["temperature"] == 0.0
    told = json.loads(call("run", folder, "--prompt", "hello", "--json").stdout)
    assert told == vars(Pieces.result)


def test_run_options_reach_the_model(generated):
    folder, got = generated
    call("run", folder, "--prompt", "hello", "--raw", "--top-p", "0.5", "--seed", "3", "--max-new-tokens", "9")
    prompt, options = got[0]
    assert prompt == "hello"
    assert options == {"max_new_tokens": 9, "temperature": 1.0, "top_k": 0, "top_p": 0.5, "repetition_penalty": 1.0,
                       "seed": 3, "raw": True, "stream": True, "images": (), "videos": (), "fps": None,
                       "video_max_tokens": None}
    call("run", folder, "--prompt", "hello", "--top-k", "5", "--temperature", "0.25")
    assert (got[1][1]["temperature"], got[1][1]["top_k"]) == (0.25, 5)
    call("run", folder, "--prompt", "hello", "--image", "a.png", "--image", "b.png", "--video", "c.mp4", "--fps", "0.5",
         "--video-max-tokens", "900")
    asked = got[2][1]
    assert (asked["images"], asked["videos"]) == ([Path("a.png"), Path("b.png")], [Path("c.mp4")])
    assert (asked["fps"], asked["video_max_tokens"]) == (0.5, 900)
