"""Quantised checkpoints compiled for a GPU: matrices stay coded in the artefact and are decoded inside the kernels."""

from __future__ import annotations

import hashlib
import json
import shutil

import models
import pytest
import quantised
import torch
from typer.testing import CliRunner

import glmc
from glmc.artifact import canonical, manifest_digest
from glmc.cli.main import app
from glmc.errors import DamagedArtifact, IncompatibleArtifact
from glmc.native.keep import forms_for_gpu
from glmc.program import Program, Region, Spec, Step

MADE = [("quark", "glm4_moe", "MX4", 10), pytest.param(("channel", "glm4", "F8", 8), marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=MADE, ids=["MX4", "F8"])
def made(request, tmp_path_factory):
    kind, family, form, count = request.param
    checkpoint = quantised.written(kind, family=family)
    artifact = glmc.compile(checkpoint.folder, tmp_path_factory.mktemp("gpu") / "x.glmc", target="cuda:sm_90", max_len=40)
    return checkpoint, artifact, form, count


@pytest.mark.parametrize("lengths", [(3,), pytest.param((10, 3), marks=pytest.mark.slow)])  # few rows, and many
def test_in_float32_they_are_those_of_the_decoded_weights(made, lengths):
    checkpoint, artifact, form, count = made
    session = glmc.load(artifact.folder, device="triton-interpreted")
    assert [keep.form for keep in session.kept.values()] == [form] * count
    for ids in models.prompts(131, *lengths):
        expected = models.logits(checkpoint.reference, ids)
        assert (session.logits(torch.tensor([ids]))[0] - expected).abs().max() <= 1e-4
    assert session.generate(ids, max_new_tokens=2).token_ids == models.greedy(checkpoint.reference, ids, 2)


def test_what_is_kept_is_said_and_proved(made):
    _, artifact, form, count = made
    assert f"quantised matrices are kept as they are: {count} in {form}" in artifact.json("ledger.json")["notes"]
    proofs = artifact.json("proofs.json")["coded"]
    assert sum(p["places"] for p in proofs) == count
    assert all(0 < p["coded_error"] <= p["limit"] for p in proofs)
    done = CliRunner().invoke(app, ["inspect", str(artifact.folder)])
    assert done.exit_code == 0, done.stderr
    assert form in done.stdout
    assert "products with coded matrices" in done.stdout


@pytest.mark.slow
def test_in_bfloat16_they_are_as_near_as_the_expanded_ones(tmp_path):
    checkpoint = quantised.written("modelopt", family="glm4", dtype="bfloat16")
    ids = models.prompts(131, 9)[0]
    exact, errors, sizes = models.logits(checkpoint.reference, ids), [], []
    for dtype in ("auto", "bfloat16"):
        artifact = glmc.compile(checkpoint.folder, tmp_path / dtype, target="cuda:sm_90", dtype=dtype, max_len=40)
        session = glmc.load(tmp_path / dtype, device="triton-interpreted")
        errors.append((session.logits(torch.tensor([ids]))[0] - exact).norm() / exact.norm())
        sizes.append(artifact.weight_bytes())
        assert bool(session.kept) is (dtype == "auto")
    assert errors[0] <= 2 * errors[1]
    assert sizes[0] < sizes[1]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "family"), [(k, f) for f in ("glm4_moe", "glm4_moe_lite", "glm_moe_dsa")
                                              for k in ("quark", "channel", "tensor", "modelopt")])
def test_every_form_and_family(kind, family, tmp_path):
    checkpoint = quantised.written(kind, family=family)
    artifact = glmc.compile(checkpoint.folder, tmp_path / "x.glmc", target="rocm:gfx942", max_len=40)
    session = glmc.load(artifact.folder, device="triton-interpreted")
    assert session.kept
    for ids in models.prompts(131, 2, 20):
        expected = models.logits(checkpoint.reference, ids)
        assert (session.logits(torch.tensor([ids]))[0] - expected).abs().max() <= 1e-4


NAME = "model.layers.0.self_attn.o_proj.weight"


def other_form(keep):
    keep["form"] = "MX4" if keep["form"] == "F8" else "F8"


@pytest.mark.parametrize("change", [
    lambda program: program.pop("kept"), lambda program: program["kept"].pop("weights"),
    lambda program: program["kept"]["weights"].pop(NAME),
    lambda program: other_form(program["kept"]["weights"][NAME]),
    lambda program: program["kept"]["weights"][NAME].update(form="Q4"),
    lambda program: program["kept"]["weights"][NAME].update(gpu=False),
    lambda program: program["kept"]["weights"][NAME].update(sizes=[64, 32])])
def test_a_program_whose_forms_do_not_fit_is_refused(made, tmp_path, change):
    copied = tmp_path / "changed.glmc"
    shutil.copytree(made[1].folder, copied)
    program = json.loads((copied / "program.json").read_text())
    change(program)
    said = canonical(program)
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["files"]["program.json"] = {"bytes": len(said), "sha256": hashlib.sha256(said).hexdigest()}
    manifest["digest"] = manifest_digest(manifest)
    for name, data in (("program.json", said), ("manifest.json", canonical(manifest))):
        (copied / name).chmod(0o644)
        (copied / name).write_bytes(data)
    with pytest.raises((DamagedArtifact, IncompatibleArtifact)):
        glmc.load(copied, device="triton-interpreted")


def test_only_what_products_read_is_kept():
    specs = {"table": (131, 64), "used": (64, 64), "turned": (64, 64), "gate": (8, 128, 64), "down": (8, 64, 64)}
    region = Region("layer_1", (("x", "value", Spec("float32", ("S", 64))),
                                *((n, "weight", Spec("float32", s)) for n, s in specs.items())), (Spec("float32", ("S", 64)),),
                    ("linear = aten.linear.default(x, used)", "view = aten.view.default(turned, [64, 64])",
                     "other = aten.linear.default(linear, turned)", "head = aten.linear.default(other, table)",
                     "row = aten.embedding.default(table, head)", "moe = glmc.moe_experts(x, row, view, gate, down)",
                     "return (moe,)"))
    step = Step("layer_1", ("value:0", *(f"weight:{n}" for n in specs)), ("value:1",))
    found = forms_for_gpu(Program({"layer_1": region}, (step,), "value:1"), dict.fromkeys(specs, "MX4"))
    assert {n: (k.form, k.sizes, k.gpu) for n, k in found.items()} == {
        n: ("MX4", specs[n], True) for n in ("used", "gate", "down")}
