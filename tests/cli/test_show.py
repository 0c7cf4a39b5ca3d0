"""What needs no model: explain, doctor, and how texts, sizes and progress are shown."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console
from rich.progress import Progress
from typer.testing import CliRunner

from glmc.cli import explain, progress, show
from glmc.cli.main import app
from glmc.target import TARGETS


def call(*words: str):
    """One command line in this process; the result has .exit_code, .stdout and .stderr."""
    return CliRunner().invoke(app, list(words))


@pytest.mark.parametrize("name", sorted(explain._known()))
def test_every_known_name_is_explained(name):
    told = json.loads(call("explain", name, "--json").stdout)
    assert told["text"]
    assert told["kind"] in ("fusion", "op", "pass", "error", "exit code", "knob", "target")
    done = call("explain", name)
    assert done.exit_code == 0
    assert told["text"].split("\n")[0] in done.stdout


def test_a_fusion_shows_its_reference_and_kernels():
    told = json.loads(call("explain", "rope", "--json").stdout)
    assert told["reference"].startswith("def reference(")
    assert "noqa" not in told["reference"]
    assert "kernels/rope/cpu.py" in told["facts"]
    assert "cpu" in told["facts"]["taken on"]
    assert told["facts"]["taken on"].split(", ") == [*TARGETS]


def test_a_fusion_shows_its_traced_pattern():
    pattern = json.loads(call("explain", "rope", "--json").stdout)["pattern"]
    assert any("read, write recovered" in form for form in pattern["forms"])
    assert "aten.unbind.int(unflatten, read)" in pattern["steps"]
    assert "aten.slice.Tensor(x, -1, 0, _, 1)" in pattern["steps"], "a literal that only the proof closes"
    assert len(pattern["spellings"]) == 12
    assert all(": " in line and not line.endswith(": ") for line in pattern["spellings"])


def test_doctor(monkeypatch):
    monkeypatch.setenv("GLMC_FUEL", "many")
    monkeypatch.setenv("CXX", "no-such-compiler")
    report = json.loads(call("doctor", "--json").stdout)
    assert "not a whole number" in report["knobs"]["GLMC_FUEL"]
    assert "no-such-compiler" in report["targets"]["cpu:aoti"]["why_not"]
    assert report["targets"]["cpu"] == {"compiles": True, "why_not": None}
    assert report["native"]["used"] in report["native"]["built"]
    assert report["targets"]["fx"] == {"compiles": True, "why_not": None}
    assert report["targets"]["cuda:sm_90"].items() > {"compiles": True, "why_not": None}.items()
    assert report["targets"]["onnx"] == {"compiles": True, "why_not": None}
    done = call("doctor")
    assert done.exit_code == 0
    assert "no-such-compiler" in done.stdout


def test_doctor_says_why_there_is_no_native_library(monkeypatch):
    monkeypatch.setenv("GLMC_ISA", "avx1024")
    report = json.loads(call("doctor", "--json").stdout)
    assert report["native"]["used"] is None
    assert report["targets"]["cpu"]["why_not"] == report["native"]["fault"]


def test_text_for_a_terminal_cannot_steer_it():
    assert show.terminal_safe("a\x1b[2J\u202eb\n\tc") == "a\\x1b[2J\\u202eb\n\tc"


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 40, "3.0 TiB")])
def test_bytes(count, text):
    assert show.bytes_text(count) == text


def test_a_stage_is_told_once(capsys):
    report = progress._lines()
    for done in (0, 1, 2, 2):
        report("pack weights", done, 2)
    report("compile regions", 0, 0)
    assert [line.split(" in")[0].split(":")[0] for line in capsys.readouterr().err.splitlines()] == [
        "pack weights", "compile regions"]


def test_bars_count_on_a_terminal():
    screen = io.StringIO()
    with Progress(console=Console(file=screen, force_terminal=True, width=100)) as bars:
        report = progress._bars(bars)
        for done in range(3):
            report("pack weights", done, 2)
        report("compile regions", 0, 0)
        assert [(t.description, t.completed, t.total) for t in bars.tasks] == [
            ("pack weights", 2, 2), ("compile regions", 0, 0)]
    assert "pack weights" in screen.getvalue()


def test_a_table_takes_texts_literally(capsys):
    show.console().print(show.facts("t", {"a": "[red]x[/red] :smile: \x1b[2J"}))
    shown = capsys.readouterr().out
    assert "[red]x[/red] :smile: \\x1b[2J" in shown
    assert "\x1b" not in shown
