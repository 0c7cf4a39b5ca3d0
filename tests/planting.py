"""Artefacts with a fault in them, and what `glmc verify --against` says about them."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import models
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import glmc
from glmc import build, survey
from glmc.cli.main import app
from glmc.program import Program
from glmc.target import named


def call(*words: object):
    return CliRunner().invoke(app, ["verify", *map(str, words)])


def told(out: Path, checkpoint: Path, code: int) -> dict[str, Any]:
    """The comparison as JSON; the exit code is `code`."""
    done = call(out, "--against", checkpoint, "--json")
    assert done.exit_code == code, done.stdout + done.stderr
    return json.loads(done.stdout)["against"]


def verdicts(answer: dict[str, Any]) -> dict[str, str]:
    return {row["module"]: row["verdict"] for row in answer["rows"]}


def scaled(name: str, by: float = 1.01):
    def edit(tensors):
        tensors[name] = tensors[name] * by
    return edit


def swapped(first: str, second: str):
    def edit(tensors):
        tensors[first], tensors[second] = tensors[second], tensors[first]
    return edit


def compiled(folder: Path, monkeypatch: Any, variant: str, edit=lambda tensors: None, dtype: str = "float32",
             line: tuple[str, str, str] | None = None, max_len: int = 32, **config: Any) -> tuple[Path, Path]:
    """Compile an edited copy of a variant's checkpoint on engine `fx`; the artefact and the checkpoint as it was.

    edit(tensors) changes tensors, `config` fields; line: a part of the program, and what in its regions' text becomes what.
    """
    original = models.published(variant, dtype)[2]
    copied = shutil.copytree(original, folder / "edited")
    tensors = load_file(copied / "model.safetensors")
    edit(tensors)
    save_file(tensors, copied / "model.safetensors", {"format": "pt"})
    if config:
        fields = json.loads((copied / "config.json").read_text())
        (copied / "config.json").write_text(json.dumps({**fields, **config}))
    else:
        known = _surveyed(original, dtype)
        programs = {part: _with(program, *line[1:]) if line and part == line[0] else program
                    for part, program in known.programs.items()}
        monkeypatch.setattr(build, "survey", lambda *_: dataclasses.replace(known, programs=programs))
    glmc.compile(copied, folder / "x.glmc", target="fx", max_len=max_len)
    monkeypatch.undo()
    return folder / "x.glmc", original


@functools.cache
def _surveyed(checkpoint: Path, dtype: str) -> survey.Survey:
    return survey.survey(checkpoint, named("fx"), dtype)


def _with(program: Program, old: str, new: str) -> Program:
    texts = {name: region.text().replace(old, new) for name, region in program.regions.items()}
    assert any(texts[name] != region.text() for name, region in program.regions.items())
    return dataclasses.replace(program, regions={n: type(r).parse(texts[n]) for n, r in program.regions.items()})
