"""`glmc verify --against` of models that see: a tower's blocks, placed features and three-row positions are compared too."""

from __future__ import annotations

import functools

import models
import planting
import pytest
from planting import scaled, told, verdicts

from glmc import trial
from glmc.runtime import vision
from glmc.runtime.engines import fx
from glmc.runtime.prompt import Prompt

SEEING = "glm_ocr"
TEXT, TOWER = "model.language_model", "model.visual"
LAYERS = [f"{TEXT}.layers.{i}" for i in range(3)]
BLOCKS = [f"{TOWER}.blocks.{i}" for i in range(2)]


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """Compile the model with a fault in it; see `planting.compiled`."""
    return functools.partial(planting.compiled, tmp_path, monkeypatch, SEEING)


@pytest.mark.parametrize(("family", "target"), [("glm4v", "cpu"), ("glm_ocr", "fx"), ("glm4v_moe", "fx")])
def test_an_equal_artefact_agrees(family, target):
    made = models.made(family, target=target)
    answer = told(made.out, made.checkpoint, 0)
    found = verdicts(answer)
    first = [f"{TOWER}.{'patch_embed' if family == 'glm_ocr' else 'embeddings'}", f"{TOWER}.rotary_pos_emb"]
    assert list(found) == [*first, *BLOCKS, f"{TOWER}.merger", f"{TEXT}.rotary_emb", "inputs_embeds", *LAYERS, "lm_head",
                           TOWER, "logits"]
    assert (answer["first"], len(answer["tokens"])) == (None, 25)
    assert answer["tokens"].count(made.config["image_token_id"]) == 9
    assert set(found.values()) == {"agrees"}


def test_the_images_axes_differ():
    asked = trial.trial(models.made(SEEING).session, models.torch.float32, 0)
    time, height, width = asked.seen.positions
    assert not any((a == b).all() for a, b in ((time, height), (time, width), (height, width)))
    assert asked.seen.grid.tolist() == [[1, 4, 6], [1, 6, 2]]
    assert asked.prompt.delta < 0


@pytest.mark.parametrize(("module", "step"), [
    (f"{LAYERS[1]}.mlp.gate_up_proj", LAYERS[1]),
    (f"{TEXT}.embed_tokens", "inputs_embeds"),
    (f"{TOWER}.patch_embed.proj", f"{TOWER}.patch_embed"),
    (f"{BLOCKS[0]}.attn.qkv", BLOCKS[0]),
    (f"{BLOCKS[1]}.mlp.down_proj", BLOCKS[1]),
    (f"{TOWER}.downsample", f"{TOWER}.merger"),
    (f"{TOWER}.merger.down_proj", f"{TOWER}.merger"),
])
def test_a_wrong_weight_is_named(compiled, module, step):
    answer = told(*compiled(scaled(f"{module}.weight", 1.1)), 7)
    assert answer["first"] == module
    whole = [TOWER] if TOWER in module else []
    assert [m for m, v in verdicts(answer).items() if v == "diverges"] == [step, *whole, "logits"], "only that step"


def test_an_equal_artefact_in_bfloat16_agrees(compiled):
    assert set(verdicts(told(*compiled(dtype="bfloat16"), 0)).values()) == {"agrees"}


def test_a_wrong_weight_in_bfloat16_is_named(compiled):
    answer = told(*compiled(scaled(f"{BLOCKS[1]}.attn.proj.weight", 1.2), "bfloat16"), 7)
    assert answer["first"] == f"{BLOCKS[1]}.attn.proj"


@pytest.mark.parametrize(("line", "module"), [
    (("text", "axis_map=[0, 1, 1", "axis_map=[0, 1, 2"), f"{TEXT}.rotary_emb"),
    (("text", "glmc.place_media(embedding, features, media)", "aten.mul.Tensor(embedding, 1.0)"), "inputs_embeds"),
], ids=("axes", "placing"))
def test_a_wrong_line_is_named(compiled, line, module):
    assert told(*compiled(line=line), 7)["first"] == module


@pytest.mark.parametrize(("where", "name", "wrong", "module"), [
    (trial, "positions", lambda right: lambda *a: (right(*a)[0][[0, 2, 1]], right(*a)[1]), f"{TEXT}.rotary_emb"),
    (Prompt, "delta", lambda right: property(lambda prompt: right.fget(prompt) + 1), f"{TEXT}.rotary_emb"),
    (vision, "order", lambda right: lambda *a: right(*a).flip(1), f"{TOWER}.rotary_pos_emb"),
    (vision, "ends", lambda right: lambda grid: right(grid)[[0, -1]], f"{BLOCKS[0]}.attn"),
    (vision.Vision, "__call__", lambda right: lambda self, *a: right(self, *a) * 1.01, TOWER),
], ids=("three rows", "after images", "patches", "images", "whole"))
def test_a_wrong_runtime_is_told(monkeypatch, where, name, wrong, module):
    made = models.made(SEEING)
    monkeypatch.setattr(where, name, wrong(getattr(where, name)))
    assert told(made.out, made.checkpoint, 7)["first"] == module


def test_wrong_code_of_a_block_is_told(monkeypatch):
    made, right = models.made(SEEING), fx.open

    def wrong(artifact, region, form, device):
        run = right(artifact, region, form, device)
        return run if region.kind != "vision_layer" else lambda inputs: tuple(t * 1.001 for t in run(inputs))
    monkeypatch.setattr(fx, "open", wrong)
    assert told(made.out, made.checkpoint, 7)["first"] == BLOCKS[0]


def test_rows_that_hold_no_image_are_told(compiled):
    answer = told(*compiled(max_len=24), 0)
    assert verdicts(answer).keys() == {f"{TEXT}.rotary_emb", "inputs_embeds", *LAYERS, "lm_head", "logits"}
    assert "no images: the artefact's rows hold 24 tokens" in answer["notes"]
