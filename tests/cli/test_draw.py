"""`glmc run` of an artefact that makes pictures: the file, what is told, and flags that are for text."""

from __future__ import annotations

import json

import models
import numpy as np
import picturing
import pytest
from PIL import Image
from typer.testing import CliRunner

import glmc
from glmc.cli import draw
from glmc.cli.main import app
from glmc.errors import IncompatibleArtifact
from glmc.runtime.image import pipeline
from glmc.runtime.image.pipeline import ImageModel
from glmc.runtime.image.prior import Prior


@pytest.fixture
def drawing(monkeypatch):
    """The artefact's folder; its first stage says zeros, which costs nothing."""
    made = picturing.made()

    def tokens(self, prompt, height, width, images, seed):
        zeros = models.torch.zeros(height // 16, width // 16, dtype=models.torch.int64)
        return Prior(zeros, tuple(zeros for _ in images), zeros[0], seed)

    monkeypatch.setattr(ImageModel, "tokens", tokens)
    monkeypatch.setitem(vars(glmc), "load", lambda path, device: made.model)
    return str(made.model.artifact.folder)


def call(*words: str):
    return CliRunner().invoke(app, list(words))


def test_a_picture_is_written_and_told(drawing, tmp_path):
    out = tmp_path / "a.png"
    done = call("run", drawing, "--prompt", "a cat", "--size", "64x32", "-o", str(out), "--steps", "1", "--seed", "4", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["path"], told["height"], told["width"], told["seed"]) == (str(out), 32, 64, 4)
    assert set(told["timings"]) == {"prior", "glyphs", "condition", "denoise", "decode"}
    assert Image.open(out).size == (64, 32)
    plain = call("run", drawing, "--prompt", "a cat", "--image", str(out), "-o", str(tmp_path / "b.webp"), "--steps", "1")
    assert plain.stdout == f"{tmp_path / 'b.webp'}\n"
    assert plain.stderr.startswith("64 x 32, seed ")


@pytest.mark.parametrize("more", [[], ["--cfg-parallel"]])
def test_two_ranks_write_the_picture_of_one(more, tmp_path):
    words = ["run", str(picturing.made().model.artifact.folder), "--prompt", "a cat", "--size", "64x96", "--steps", "2",
             "--seed", "4", "-o"]
    assert call(*words, str(tmp_path / "one.png")).exit_code == 0
    done = call(*words, str(tmp_path / "two.png"), "--ranks", "2", "--json", *more)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["path"], told["width"], told["height"], told["seed"]) == (str(tmp_path / "two.png"), 64, 96, 4)
    one, two = (np.asarray(Image.open(tmp_path / f"{name}.png"), np.int16) for name in ("one", "two"))
    assert abs(one - two).max() <= 1


def test_rows_that_ranks_cannot_share_are_refused_before_any_starts(monkeypatch, tmp_path):
    monkeypatch.setattr(draw, "Supervised", lambda *_: pytest.fail("ranks were started"))
    told = call("run", str(picturing.made().model.artifact.folder), "--prompt", "a cat", "--size", "64x96", "-o",
                str(tmp_path / "a.png"), "--ranks", "4")
    assert told.exit_code == 2
    assert "64 or 128 for 4 ranks" in told.stderr


def test_guidance_is_shared_by_ranks_alone(drawing, tmp_path):
    words = ["run", drawing, "--prompt", "a cat", "--size", "64x96", "-o", str(tmp_path / "a.png"), "--cfg-parallel"]
    assert "--ranks N" in call(*words).stderr
    told = call(*words, "--ranks", "3")
    assert told.exit_code == 2
    assert "even number" in told.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("words", "said"), [
    (["--size", "64x32"], "-o"), (["--size", "64", "-o", "x.png"], "1024x768"), (["-o", "x.png"], "size"),
    (["--size", "64x32", "-o", "x.tiff"], ".png"), (["--size", "64x48", "-o", "x.png"], "multiple of 32"),
    (["--size", "64x32", "-o", "x.png", "--max-new-tokens", "5"], "--max-new-tokens is for artefacts of text"),
    (["--size", "64x32", "-o", "x.png", "--raw"], "--raw is for artefacts of text"),
    (["--size", "64x32", "-o", "x.png", "--video", "v.mp4"], "--video is for artefacts of text"),
    (["--size", "64x32", "-o", "x.png", "--guidance", "nan"], "from 1"),
])
def test_what_is_not_for_pictures_is_refused(drawing, words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call("run", drawing, "--prompt", "a cat", *words)
    assert done.exit_code == 2
    assert said in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_left_alone(drawing, tmp_path):
    out = tmp_path / "a.png"
    out.write_bytes(b"x")
    assert call("run", drawing, "--prompt", "a cat", "--size", "64x32", "-o", str(out)).exit_code == 2
    assert out.read_bytes() == b"x"


def test_inspect_shows_the_parts(drawing):
    told = json.loads(call("inspect", drawing, "--json").stdout)
    stages = told["program"]["stages"]
    assert {name: stages[name]["mode"] for name in stages if "mode" in stages[name]} == {
        "vision": "main_rank_then_broadcast", "vq": "main_rank_then_broadcast", "dit": "sequence_parallel",
        "vae_decode": "main_rank_only"}
    assert {"glyph", "vae_encode"} <= set(stages)
    assert told["program"]["mode"] == "main_rank_then_broadcast"
    assert told["broken"] == []
    assert "dit_layer_" in call("inspect", drawing).stdout


def test_parts_that_run_otherwise_over_ranks_are_refused(monkeypatch):
    monkeypatch.setattr(pipeline, "PICTURE_MODES", {**pipeline.PICTURE_MODES, "dit": "replicated"})
    with pytest.raises(IncompatibleArtifact, match="over ranks"):
        ImageModel(picturing.made().model.artifact)


@pytest.mark.parametrize("words", [["--size", "64x32"], ["-o", "x.png"], ["--steps", "3"], ["--guidance", "2"]])
def test_flags_of_pictures_are_refused_for_text(words):
    done = call("run", str(models.made("glm4").out), "--prompt", "a cat", *words)
    assert done.exit_code == 2
    assert f"{words[0]} is for artefacts of pictures" in done.stderr
