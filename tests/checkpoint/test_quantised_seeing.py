"""Quantised checkpoints of models with a vision tower: their numbers on an image, the spellings of their lists, their notes.

A family is surveyed, and its fusions are proved, once: neither depends on a weight.
"""

from __future__ import annotations

import dataclasses
import functools
import re

import pytest
import quantised
import seeing
import torch

import glmc
from glmc import build, families, survey
from glmc.checkpoint.folder import Checkpoint, read_config
from glmc.checkpoint.scheme import scheme_of
from glmc.errors import SchemeMismatch
from glmc.passes.prove import prove
from glmc.target import named

IMAGE = (3, (4, 6), 4)
SPELLINGS = {
    "published": (),
    "older": ((r"^model\.language_model\.", "model."), (r"^model\.visual\.", "visual."), (r"\.attn\.qkv$", ".attn.qkv_proj"),
              (r"\.merger\.(gate|up)_proj$", ".merger.gate_up_proj")),
    "engine": ((r"^model\.language_model\.", "language_model.model."), (r"^model\.visual\.", "visual."),
               (r"^lm_head$", "language_model.lm_head")),
}
"""How a list calls the modules: as the tensors are called, as GLM-4.5V-FP8 and GLM-4.6V-FP8 do, as serving engines do."""
CASES = [("glm4v_moe", "channel", "older"), ("glm4v_moe", "fp8", "engine"), ("glm4v_moe", "quark", "published"),
         ("glm4v", "channel", "engine"), ("glm4v", "fp8", "published"), ("glm4v", "quark", "older")]


@functools.cache
def known(family, target, dtype):
    return survey.survey(quantised.written("channel", spared=("visual",), family=family).folder, named(target), dtype)


@functools.cache
def proved(family, target, dtype):
    return prove(known(family, target, dtype).captured[named(target)], named(target))


@pytest.fixture(autouse=True)
def once(monkeypatch):
    monkeypatch.setattr(build, "survey", again)
    monkeypatch.setattr(build, "prove", lambda captured, machine: next(
        proved(family, machine.name, "float32") for family in ("glm4v", "glm4v_moe")
        if known(family, machine.name, "float32").captured[machine] is captured))


def again(source, target, dtype, *_):
    config = read_config(source)
    found = known(config["model_type"], target.name, survey.dtype_of(config, dtype, target))
    return dataclasses.replace(found, config=config, dims=families.load(config).read(config), notes=list(found.notes))


def written(family, kind, tower=False):
    """A checkpoint whose list has the names of its tensors; with `tower`, that is quantised as well."""
    return quantised.written(kind, spared=() if tower else ("visual",), family=family)


def respelt(entries, spelling):
    for theirs, listed in SPELLINGS[spelling]:
        entries = [re.sub(theirs, listed, entry) for entry in entries]
    return list(dict.fromkeys(entries))


def listing(made, kind, folder, change):
    """The checkpoint with a changed list."""
    said, listed = made.config["quantization_config"], quantised.KINDS[kind].listed
    config = {**made.config, "quantization_config": {**said, listed: change(said[listed])}}
    return quantised.put(folder, made.stored, config)


def recipes(folder):
    """What `compile` does before it reads a weight."""
    checkpoint = Checkpoint.open(folder)
    return build._recipes(again(folder, named("cpu"), "float32"), checkpoint, scheme_of(checkpoint.config))


def agrees(made, artifact):
    one = seeing.asked(made, *IMAGE)
    wanted = seeing.logits(made, one)
    assert wanted.abs().max() > 0.5
    session = glmc.load(artifact.folder)
    assert (session.prefill(0, one.prompt, every_row=True)[0] - wanted).abs().max() < 1e-4
    assert session.generate(one.prompt, max_new_tokens=6).token_ids == seeing.greedy(made, one, 6)


def notes(artifact):
    return [note for note in artifact.json("ledger.json")["notes"] if "quantised matrices" in note or "only the text" in note]


def forms(artifact, of):
    """The forms in which matrices are kept whose names hold a text."""
    return {one["form"] for name, one in artifact.json("program.json")["kept"]["weights"].items() if of in name}


@pytest.mark.parametrize(("family", "kind", "spelling"), CASES, ids=str)
def test_logits_and_tokens_on_an_image_are_those_of_the_decoded_weights(tmp_path, family, kind, spelling):
    made = written(family, kind)
    folder = listing(made, kind, tmp_path / "in", lambda entries: respelt(entries, spelling))
    artifact = glmc.compile(folder, tmp_path / "x.glmc", max_len=40)
    agrees(made, artifact)
    # Blocks of 48 inputs are a whole row only in the experts' down_proj.
    kept = {"quark": {"MX4"}, "channel": {"F8"}, "fp8": {"F8"} if family == "glm4v_moe" else set()}[kind]
    assert {"MX4", "F8"} & forms(artifact, "model.language_model") == kept
    assert not {"MX4", "F8"} & forms(artifact, "model.visual")
    assert not any("vision tower" in note for note in notes(artifact))


@pytest.mark.parametrize("kind", ["channel", "quark"])
def test_a_quantised_tower_is_decoded(tmp_path, kind):
    made = written("glm4v", kind, tower=True)
    artifact = glmc.compile(made.folder, tmp_path / "x.glmc", max_len=40)
    agrees(made, artifact)
    assert forms(artifact, "model.visual") <= {"F32", "vector", "rows"}
    assert {"MX4", "F8"} & forms(artifact, "model.language_model")
    # In each of two blocks qkv, proj, gate with up, and down; three matrices of the merger.
    assert "11 quantised matrices are made float32: they are the vision tower's, and only those of the text stay in codes" \
        in notes(artifact)


def test_quant_is_about_the_text(tmp_path):
    artifact = glmc.compile(written("glm4v", "channel", tower=True).folder, tmp_path / "x.glmc", max_len=40, quant="int8")
    tower, text, quant = notes(artifact)
    assert "quantised matrices are made int8: int8 is asked for" in text
    assert "11 quantised matrices are made float32: they are the vision tower's" in tower
    assert quant == "only the text is made int8: the vision tower stays float32"
    assert forms(artifact, "model.visual") <= {"F32", "vector", "rows"}
    assert "Q8" in forms(artifact, "model.language_model")


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("family", ["glm4v", "glm4v_moe"])
def test_every_spelling_of_a_list_says_the_same(tmp_path, family, spelling):
    made = written(family, "channel")
    folder = listing(made, "channel", tmp_path / "in", lambda entries: respelt(entries, spelling))
    assert recipes(folder) == recipes(made.folder)


@pytest.mark.parametrize("entry", ["visual.blocks.0.attn.q_proj", "model.visual.blocks.2.attn.qkv", "visual.merger.fc",
                                   "model.layers.0.mlp.typo_proj", "language_model.lm_heads", "vision_tower.blocks.0.attn.qkv",
                                   "re:vision_tower.*"])
def test_an_entry_that_names_nothing_is_refused(tmp_path, entry):
    made = written("glm4v", "channel")
    folder = listing(made, "channel", tmp_path / "in", lambda entries: [*entries, entry])
    with pytest.raises(SchemeMismatch) as caught:
        recipes(folder)
    assert f"{entry}: an entry of ignore that names nothing in the checkpoint" in str(caught.value)
    assert "disagree (1)" in str(caught.value)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", ["visual.blocks.1.attn.qkv", "visual.merger.up_proj", "language_model.embed_tokens"])
def test_an_entry_of_the_tower_cannot_go(tmp_path, name, spelling):
    made = written("glm4v", "channel")
    gone = respelt([f"model.{name}"], spelling)
    folder = listing(made, "channel", tmp_path / "in", lambda entries: [
        entry for entry in respelt(entries, spelling) if entry not in gone])
    if "embed" in name:
        assert recipes(folder) == recipes(made.folder)
        return
    with pytest.raises(SchemeMismatch) as caught:
        recipes(folder)
    assert f"model.{name}.weight: has no scale, and no entry of ignore excludes it" in str(caught.value)


def test_an_entry_that_excludes_what_is_quantised_in_the_tower(tmp_path):
    made = written("glm4v", "channel", tower=True)
    folder = listing(made, "channel", tmp_path / "in", lambda entries: [*entries, "visual.blocks.0.attn.qkv_proj"])
    with pytest.raises(SchemeMismatch) as caught:
        recipes(folder)
    assert "qkv.weight: has a scale, and the entry visual.blocks.0.attn.qkv_proj of ignore excludes it" in str(caught.value)


def test_quant_of_a_checkpoint_that_is_not_quantised(tmp_path):
    made = written("glm4v", "channel")
    config = {k: v for k, v in made.config.items() if k != "quantization_config"}
    stored = {name: quantised.plain(tensor, wide=True)[0] for name, tensor in made.decoded.items()}
    artifact = glmc.compile(quantised.put(tmp_path / "in", stored, config), tmp_path / "x.glmc", max_len=40, quant="int4")
    assert notes(artifact) == ["only the text is made int4: the vision tower stays float32"]
    one = seeing.asked(made, *IMAGE)
    found = glmc.load(artifact.folder).prefill(0, one.prompt, every_row=True)[0]
    assert torch.nn.functional.cosine_similarity(found.flatten(), seeing.logits(made, one).flatten(), 0) > 0.9
