"""`--quant`: what is quantised and what is not, that the numbers are those of the quantised weights, and what is refused."""

from __future__ import annotations

import json

import models
import pytest
import torch

import glmc
from glmc.errors import UsageError
from glmc.native.keep import kept_of


@pytest.fixture(scope="module", params=[("glm4_moe", "int8"), ("glm4_moe", "int4"), ("glm-tied-no-bias", "int8"),
                                        ("glm4_moe-odd", "int4"), ("glm4", "int4")], ids="-".join)
def made(request):
    variant, quant = request.param
    config, model, checkpoint = models.published(variant)
    out = checkpoint.parent / f"{variant}-{quant}.glmc"
    glmc.compile(checkpoint, out, quant=quant, max_len=64, max_batch=2)
    return quant, models.Made(config, model, checkpoint, out, glmc.load(out))


def dequantised(found: models.Made) -> torch.nn.Module:
    """transformers' model with the weights that the artefact holds."""
    model = models.randomised(found.config)
    state = model.state_dict()
    kept = kept_of(found.session.artifact.json("program.json"))
    parts = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
    with torch.no_grad():
        for name, keep in kept.items():
            if name not in found.session.weights or "inv_freq" in name:
                continue
            plain = keep.held(found.session.weights[name])
            if name in state:
                state[name].copy_(plain)
                continue
            joined, pieces = next((j, p) for j, p in parts.items() if f".{j}." in name)
            names = [name.replace(joined, piece) for piece in pieces]
            for own, rows in zip(names, plain.split([state[n].shape[0] for n in names]), strict=True):
                state[own].copy_(rows)
    return model


def test_every_matrix_is_quantised_but_routers(made):
    quant, found = made
    kept = kept_of(found.session.artifact.json("program.json"))
    for name, keep in kept.items():
        expected = ({"int8": "Q8", "int4": "Q4"}[quant] if "proj" in name and not name.endswith("bias") else
                    "Q8" if "lm_head" in name or ("embed" in name and keep.packed) else
                    "F32" if name.endswith("mlp.gate.weight") else "rows" if "embed" in name else "vector")
        assert keep.form == expected, name
    assert found.session.artifact.manifest["quant"] == quant


def test_the_numbers_are_those_of_the_weights_it_holds(made):
    """What is left is that activations are in 8 bits."""
    _, found = made
    reference = dequantised(found)
    gaps, scale = [], 0.0
    for ids in models.prompts(131, 30, 7, 50):
        theirs, ours = models.logits(reference, ids), found.session.logits(torch.tensor([ids]))[0]
        gaps.append((ours - theirs).abs())
        scale = max(scale, float(theirs.abs().max()))
    gap = torch.cat(gaps)
    assert gap.mean() < 0.01 * scale
    assert gap.median() > 1e-7, "nothing was rounded: the reference is not what it seems"
    assert (models.logits(found.reference, ids) - theirs).abs().mean() > 2e-3 * scale, "quantising changed nothing"


def test_proofs_say_how_far_each_region_is_off(made):
    _, found = made
    proofs = json.loads((found.out / "proofs.json").read_text())["native"]
    assert {p["region"] for p in proofs} == set(found.session.program.regions)
    assert all(p["native_error"] <= p["limit"] <= 0.1 and p["note"] is None for p in proofs)
    assert any(p["native_error"] > 1e-3 for p in proofs)


@pytest.mark.parametrize(("quant", "target"), [("int5", "cpu"), ("int8", "fx"), ("int4", "cpu:aoti"), ("int8", "cuda:sm_90")])
def test_what_cannot_be_quantised_is_refused_before_anything_is_read(tmp_path, quant, target):
    with pytest.raises(UsageError, match="quant"):
        glmc.compile(tmp_path / "nothing", tmp_path / "out.glmc", quant=quant, target=target)
    assert not (tmp_path / "out.glmc").exists()
