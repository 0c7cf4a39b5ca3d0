"""The first stage of GLM-Image beside transformers: logits, tokens, exact counts, seeds, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import drawing
import models
import pytest
import torch

from glmc.errors import IncompatibleArtifact, MediaError, RequestOutOfBounds, UsageError
from glmc.native import keep
from glmc.runtime.image.ask import asked
from glmc.runtime.image.codes import tokens_of
from glmc.runtime.image.prior import Prior, prior, published_sampling
from glmc.runtime.image.settings import Settings
from glmc.runtime.image.sizes import Grid, upsampled
from glmc.runtime.prompt import Placed
from glmc.runtime.sample import Sampling

PROMPT = "A cat with 'Hi' on 3 hats"
CASES = [(160, 224, ()), (64, 288, ()), (288, 64, ()), (32, 32, ()), (160, 224, ((60, 80),)), (64, 288, ((33, 61),)),
         (160, 160, ((60, 80), (91, 40))), (224, 96, ((24, 70), (70, 24)))]
"""Height and width in pixels, sizes of the images that it is made from: grids of tokens such as 5 x 7 and 2 x 9."""
TARGETS = ["fx", "cpu"]


def images(sizes):
    return [drawing.picture(*size, seed=i) for i, size in enumerate(sizes)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_prompts_are_those_of_transformers(case):
    made, (height, width, sizes) = drawing.made(), case
    given = drawing.inputs(made, PROMPT, height, width, images(sizes))
    session = made.session
    found = asked(Settings.open(session.file, session.text), session.text, PROMPT, height, width, images(sizes), 440)
    assert found.ids == given["input_ids"][0].tolist()
    assert [list(grid) for grid in found.sources] == given["image_grid_thw"][:len(sizes), 1:].tolist()


@pytest.mark.parametrize("target", [*TARGETS, pytest.param("onnx", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES[3:6:2], ids=str)
def test_logits_are_those_of_transformers(target, case):
    made, (height, width, sizes) = drawing.made(target), case
    given = drawing.inputs(made, PROMPT, height, width, images(sizes))
    session = made.session
    found = asked(Settings.open(session.file, session.text), session.text, PROMPT, height, width, images(sizes), 440)
    ids = torch.tensor(found.ids)
    if sizes:
        ids[ids == 120] = torch.cat([one.flatten() for one in tokens_of(session, given["pixel_values"], found.sources)])
    session.take_cache()
    with torch.no_grad():
        expected = made.reference(**given).logits[0]
    ours = session.extend(0, ids.tolist(), 0, True, Placed(found.positions))[0]
    assert float((ours - expected).abs().max()) < 1e-4
    flat = session.extend(0, ids.tolist(), 0, True)[0]
    assert bool(sizes) == (float((flat - expected).abs().max()) > 1e-2)  # positions of images are what decides


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_greedy_tokens_are_those_of_transformers(target, case):
    made, (height, width, sizes) = drawing.made(target), case
    given = drawing.inputs(made, PROMPT, height, width, images(sizes))
    found = prior(made.session, PROMPT, height, width, images(sizes), Sampling())
    large = Grid(height // 32, width // 32)
    start = 0 if sizes else int(given["image_grid_thw"][1].prod())
    assert len(found.token_ids) == start + large.tokens + 1
    expected = drawing.greedy(made, given, len(found.token_ids))
    assert torch.equal(found.token_ids, expected)
    assert torch.equal(found.target, upsampled(expected[start:start + large.tokens].view(large)))
    assert found.target.shape == (height // 16, width // 16)
    assert all(map(torch.equal, found.sources, map(upsampled, drawing.codes(made, given) if sizes else [])))


def leaning(made: drawing.Made, monkeypatch: pytest.MonkeyPatch, token: int, amount: float) -> None:
    """The artefact and transformers' model prefer (or avoid) a token."""
    inner, session = made.reference.lm_head, type(made.session)
    for name in ("extend", "advance"):
        plain = getattr(session, name)

        def lean(*args, plain=plain, **named):
            logits = plain(*args, **named).clone()
            logits[..., token] += amount
            return logits
        monkeypatch.setattr(session, name, lean)
    monkeypatch.setattr(inner, "forward", lambda x, plain=inner.forward: plain(x) + amount * (torch.arange(37) == token))


def test_equal_to_plain_generate_where_that_does_not_stop(monkeypatch):
    made = drawing.made()
    for token in range(29, 37):
        leaning(made, monkeypatch, token, -1e4)
    given = drawing.inputs(made, PROMPT, 160, 224, [])
    found = prior(made.session, PROMPT, 160, 224, sampling=Sampling())
    assert torch.equal(found.token_ids, drawing.greedy(made, given, len(found.token_ids), exact=False))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("token", [31, 30, 36])
def test_the_count_is_exact_whatever_the_model_prefers(monkeypatch, token, temperature):
    made = drawing.made()
    leaning(made, monkeypatch, token, 1e4)
    given = drawing.inputs(made, PROMPT, 160, 224, images([(60, 80)]))
    plain = drawing.greedy(made, given, 36, exact=False)
    assert len(plain) == (1 if token == 31 else 36)  # published code stops, or goes on with what is no image
    found = prior(made.session, PROMPT, 160, 224, images([(60, 80)]), Sampling(temperature, seed=1))
    assert found.token_ids[:-1].max() < drawing.CODES
    assert found.token_ids[-1] == token
    assert len(found.token_ids) == 36


def test_seeds():
    fx, cpu = (drawing.made(target).session for target in TARGETS)
    drawn = dataclasses.replace(published_sampling(fx), seed=5)
    first, again, native = (prior(model, PROMPT, 64, 288, sampling=drawn) for model in (fx, fx, cpu))
    other = prior(fx, PROMPT, 64, 288, sampling=dataclasses.replace(drawn, seed=6))
    assert first.seed == 5
    assert torch.equal(first.token_ids, again.token_ids)
    assert torch.equal(first.token_ids, native.token_ids)
    assert not torch.equal(first.token_ids, other.token_ids)
    fresh = prior(fx, PROMPT, 32, 32)
    repeated = prior(fx, PROMPT, 32, 32, sampling=dataclasses.replace(drawn, seed=fresh.seed))
    assert torch.equal(fresh.token_ids, repeated.token_ids)


def test_an_empty_list_of_images_is_text_to_image():
    session = drawing.made().session
    found = prior(session, PROMPT, 64, 96, [], Sampling())
    assert torch.equal(found.token_ids, prior(session, PROMPT, 64, 96, sampling=Sampling()).token_ids)
    assert isinstance(found, Prior)
    assert found.sources == ()


@pytest.mark.parametrize(("prompt", "height", "width", "pictures", "kind", "words"), [
    (PROMPT, 100, 64, (), UsageError, "nearest is 96"), (PROMPT, 0, 64, (), UsageError, "whole number"),
    (PROMPT, 1024, 1024, (), RequestOutOfBounds, "max_len = 440"),
    (PROMPT, 32 * 19, 32 * 22, ((60, 80),), RequestOutOfBounds, "max_len"),
    ("y" * 400, 64, 64, (), RequestOutOfBounds, "max_len"), (5, 64, 64, (), UsageError, "with text"),
    ("<|image|>", 64, 64, (), UsageError, "other images"), ("a <|image|>", 64, 64, ((60, 80),), UsageError, "other images"),
    ("<|dit_token_16384|>", 64, 64, (), UsageError, "marks of images"),
    ("<|dit_token_16385|>", 64, 64, ((60, 80),), UsageError, "marks of images"),
    (PROMPT, 64, 64, ((20, 90),), RequestOutOfBounds, "too long"), (PROMPT, 64, 64, ((6, 6),), RequestOutOfBounds, "too small"),
    (PROMPT, 64, 64, (None,), MediaError, ""), ("\ud800", 64, 64, (), UsageError, "Unicode")])
def test_refused_before_the_model_runs(prompt, height, width, pictures, kind, words):
    session = drawing.made().session
    before = session._holder
    given = [b"no picture" if size is None else drawing.picture(*size) for size in pictures]
    with pytest.raises(kind) as caught:
        prior(session, prompt, height, width, given, Sampling())
    assert words in str(caught.value)
    assert session._holder == before


def test_other_models_make_no_images():
    with pytest.raises(IncompatibleArtifact, match="makes no tokens of images"):
        prior(models.made("glm").session, PROMPT, 64, 64)


def test_text_is_refused_with_what_to_use_instead():
    session = drawing.made().session
    for ask in (lambda: session.generate("Hello"), lambda: session.generate([5, 6]), lambda: session.generate("x", stream=True),
                lambda: session.generate_batch(["x"]), session.as_transformers):
        with pytest.raises(UsageError, match=r"glmc\.runtime\.image\.prior"):
            ask()


def test_another_use_of_the_cache_ends_it(monkeypatch):
    session = drawing.made().session
    plain = session.advance

    def stolen(*args):
        session.take_cache()
        return plain(*args)

    monkeypatch.setattr(session, "advance", stolen)
    with pytest.raises(UsageError, match="took its cache"):
        prior(session, PROMPT, 64, 96, sampling=Sampling())


def test_parts_that_the_library_cannot_run_are_said_and_unpacked():
    made = drawing.made("cpu")
    said = json.loads((made.out / "program.json").read_text())
    engines = {part: stage.get("engine") for part, stage in said["stages"].items()}
    notes = made.session.artifact.json("ledger.json")["notes"]
    for part, engine in engines.items():
        assert (engine == "fx") == any(note.startswith(f"part {part} runs on engine fx") for note in notes)
    assert engines == {"vision": None, "vq": "fx"}
    kept = keep.kept_of(said)
    assert not any(name.startswith("model.vqmodel.") for name in kept)
    assert any(name.startswith("model.language_model.") for name in kept)


@pytest.mark.parametrize("target", TARGETS)
def test_bfloat16(target):
    made = drawing.made(target, "bfloat16")
    found = prior(made.session, PROMPT, 64, 96, images([(60, 80)]), Sampling())
    assert len(found.token_ids) == 7
    given = drawing.inputs(made, PROMPT, 64, 96, images([(60, 80)]))
    same = found.sources[0] == upsampled(drawing.codes(made, given)[0])
    assert same.float().mean() > 0.8  # rounding decides between codes that are nearly as near
