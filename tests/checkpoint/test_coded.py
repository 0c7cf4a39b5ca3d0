"""Quantised checkpoints whose matrices stay as they are: exact in float32, near in bfloat16, something else only when told."""

from __future__ import annotations

import json
from collections import Counter

import models
import once
import pytest
import quantised
import torch
from safetensors.torch import save_file

import glmc
from glmc.checkpoint.coded import codes_of, forms_of
from glmc.checkpoint.dequantise import Dequantise
from glmc.checkpoint.folder import Checkpoint
from glmc.checkpoint.formats import source_of
from glmc.checkpoint.recipe import Cast, Concatenate, Slice, Stack, Take
from glmc.errors import WeightNotFinite
from glmc.native.keep import Keep
from glmc.passes.prove_native import QUANTISED

FORMS = {"quark": "MX4", "fp8": "F8", "channel": "F8", "tensor": "F8", "modelopt": "NV4"}
# Every kind on one family, and the first on the others: what differs between families are the names alone.
PAIRS = [*((kind, "glm4_moe") for kind in ("quark", "channel", "modelopt")), ("quark", "glm4_moe_lite"),
         ("quark", "glm_moe_dsa"), ("fp8", "glm_moe_dsa")]


@pytest.fixture(autouse=True)
def alike(monkeypatch):
    """Checkpoints that differ in how they are quantised have one survey."""
    monkeypatch.setattr("glmc.build.survey", once.survey)
    monkeypatch.setattr("glmc.build.prove", once.proofs)


def compiled(made, tmp_path, **options):
    tmp_path.mkdir(exist_ok=True)
    glmc.compile(made.folder, tmp_path / "x.glmc", **{"target": "cpu", "max_len": 80, **options})
    return glmc.load(tmp_path / "x.glmc")


def kinds(session):
    return Counter(keep.form for keep in session.kept.values())


@pytest.mark.parametrize(("kind", "family"), PAIRS)
def test_in_float32_they_are_those_of_the_decoded_weights(tmp_path, kind, family):
    made = quantised.written(kind, family=family)
    session = compiled(made, tmp_path)
    assert kinds(session)[FORMS[kind]] >= 2
    notes = session.artifact.json("ledger.json")["notes"]
    assert f"quantised matrices are kept as they are: {kinds(session)[FORMS[kind]]} in {FORMS[kind]}" in notes
    for ids in models.prompts(131, 1, 9, 40):
        expected = models.logits(made.reference, ids)
        assert (session.logits(torch.tensor([ids]))[0] - expected).abs().max() <= 1e-4
        assert session.generate(ids, max_new_tokens=16).token_ids == models.greedy(made.reference, ids, 16)


@pytest.mark.parametrize("kind", ["quark", "channel"])
def test_in_bfloat16_they_are_near_the_expanded_ones(tmp_path, kind):
    made = quantised.written(kind, family="glm4", dtype="bfloat16")  # without experts, whose choice rounding may turn
    kept, opened = (compiled(made, tmp_path / name, dtype=name) for name in ("auto", "bfloat16"))
    assert kinds(kept)[FORMS[kind]]
    assert not kinds(opened)[FORMS[kind]]
    assert any("bfloat16 is asked for" in note for note in opened.artifact.json("ledger.json")["notes"])
    ids = models.prompts(131, 60)[0]
    exact = models.logits(made.reference, ids)
    errors = [(s.logits(torch.tensor([ids]))[0] - exact).norm() / exact.norm() for s in (kept, opened)]
    # Where codes are whole numbers activations are rounded to 8 bits in groups of 32: the kernels' stated error.
    assert errors[0] <= 2 * errors[1] + (QUANTISED if any(keep.rounds for keep in kept.kept.values()) else 0.0)
    files = [s.artifact.manifest["files"] for s in (kept, opened)]
    sizes = [sum(f["bytes"] for name, f in found.items() if name.startswith("weights")) for found in files]
    assert sizes[0] < sizes[1]


def test_from_one_form_to_another(tmp_path):
    session = compiled(quantised.written("quark"), tmp_path, quant="int4")
    assert kinds(session)["Q4"]
    assert not kinds(session)["MX4"]
    assert session.generate([5, 7, 9], max_new_tokens=4).token_ids


def test_a_parameter_joined_from_several_forms_is_opened(tmp_path):
    made = quantised.written("quark", spared=("k_proj",))
    session = compiled(made, tmp_path)
    notes = session.artifact.json("ledger.json")["notes"]
    assert any("made float32: it is joined from parts in several forms" in note for note in notes)
    ids = models.prompts(131, 9)[0]
    assert (session.logits(torch.tensor([ids]))[0] - models.logits(made.reference, ids)).abs().max() <= 1e-4


def leaves(kind):
    """Two weights of a checkpoint of one kind, of the same width."""
    made = quantised.written(kind)
    checkpoint = Checkpoint.open(made.folder)
    block = json.loads((made.folder / "config.json").read_text())["quantization_config"].get("weight_block_size")
    names = [f"model.layers.0.self_attn.{p}_proj.weight" for p in "qv"]
    return checkpoint, [Dequantise(source_of(n, checkpoint.tensors, block and tuple(block))) for n in names]


def laid_out(recipe, checkpoint, form, gpu):
    """What a parameter's codes stand for when they are laid out for the native library or for GPUs."""
    keep = Keep(form, recipe.shape(checkpoint.tensors), "float32", gpu=gpu)
    out = torch.zeros(keep.stored()[1], dtype=torch.uint8)
    keep.put(*codes_of(recipe, checkpoint), out)
    return keep.held(out)


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("kind", ["quark", "channel", "tensor", "modelopt"])
def test_codes_of_a_joined_parameter_are_its_values(kind, gpu):
    checkpoint, (one, other) = leaves(kind)
    recipe = Concatenate((one, other), 0)
    assert torch.equal(laid_out(recipe, checkpoint, FORMS[kind], gpu), recipe.build(checkpoint))


@pytest.mark.parametrize("gpu", [False, True])
def test_codes_of_blocks(tmp_path, gpu):
    draw = torch.Generator().manual_seed(0)
    config = {"model_type": "glm4_moe"}
    tensors = {}
    for name, rows in (("a", 130), ("b", 70)):
        tensors[name] = torch.randint(0, 127, (rows, 300), generator=draw).to(torch.uint8).view(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = torch.rand(-(-rows // 128), 3, generator=draw)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    recipe = Concatenate(tuple(Dequantise(source_of(n, checkpoint.tensors, (128, 128))) for n in "ab"), 0)
    assert forms_of({"both": recipe}) == ({"both": "F8"}, {})
    assert torch.equal(laid_out(recipe, checkpoint, "F8", gpu), recipe.build(checkpoint))


def test_what_can_stay_and_why_not():
    _, (one, other) = leaves("quark")
    _, (byte, _) = leaves("channel")
    plain = Cast(Take("x"), "F32")
    stays, opened = forms_of({
        "whole": one, "joined": Concatenate((one, other), 0), "stacked": Stack((Concatenate((one, one), 0), one)),
        "plain": plain, "beside": Concatenate((one, plain), 0), "two forms": Concatenate((one, byte), 0),
        "across": Concatenate((one, one), 1),
        "cut": Slice(one, 0, 0, 8)})
    assert stays == {"whole": "MX4", "joined": "MX4", "stacked": "MX4"}
    assert {name: why.split()[-2:] for name, why in opened.items()} == {
        "beside": ["several", "forms"], "two forms": ["several", "forms"], "across": ["or", "turned"], "cut": ["or", "turned"]}


@pytest.mark.parametrize(("kind", "end", "code", "sound"), [
    ("channel", "", 0x7F, 0x7E), ("channel", "", 0xFF, 0xFE), ("quark", "_scale", 255, 200), ("quark", "_scale", 254, 252)])
def test_what_is_not_finite_is_refused_here_too(tmp_path, kind, end, code, sound):
    name = "model.layers.0.self_attn.q_proj.weight"
    made = quantised.written(kind)
    for number, byte in enumerate((code, sound)):
        dtype, shape, data = made.stored[name + end]
        stored = {**made.stored, name + end: (dtype, shape, bytes([byte]) + data[1:])}
        if end:  # the largest code of the group
            whole = made.stored[name]
            stored[name] = (*whole[:2], bytes([0x77]) + whole[2][1:])
        folder = quantised.put(tmp_path / str(number), stored, made.config)
        checkpoint = Checkpoint.open(folder)
        recipe = Dequantise(source_of(name, checkpoint.tensors))
        if byte == sound:
            assert codes_of(recipe, checkpoint)[0].shape[0] == shape[0]
            continue
        with pytest.raises(WeightNotFinite) as caught:
            codes_of(recipe, checkpoint)
        assert caught.value.field.startswith(name)
