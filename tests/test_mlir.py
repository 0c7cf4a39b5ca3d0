"""The targets of MLIR: text that other compilers take, and modules of IREE that the runtime calls."""

from __future__ import annotations

import functools
import json
import re
import tempfile
from pathlib import Path

import models
import once
import pytest
import torch
from iree import compiler

import glmc
from glmc import target
from glmc.against import against
from glmc.artifact import Artifact
from glmc.errors import DamagedArtifact, IncompatibleArtifact, InternalError, NumericError, UnsupportedTarget, UsageError
from glmc.iree import Loaded
from glmc.passes import iree, mlir
from glmc.passes.lower import Bounds
from glmc.passes.prove_iree import prove_iree
from glmc.program import Region
from glmc.runtime.opened import read_programs

RUNS = "mlir:llvm-cpu"
LAYER = Region.parse('''def layer_0(
    x: "value float32 [B, S, 40]",
    weight: "weight float32 [24, 40]",
    keys: "cache float32 [B, L, 2, 12]",
    positions: "value int64 [B, S]",
) -> "float32 [B, S, 24]":
    linear = aten.linear.default(x, weight)
    unflatten = aten.unflatten.int(linear, -1, [2, 12])
    size_B = aten.sym_size.int(x, 0)
    arange = aten.arange.default(size_B)
    unsqueeze = aten.unsqueeze.default(arange, -1)
    index_put_ = aten.index_put_.default(keys, [unsqueeze, positions], unflatten)
    return (linear,)
''')
BOUNDS = Bounds(3, 40)
PANELS = {"weight": (1, 40, 32)}
FEW = {"num_hidden_layers": 2, "first_k_dense_replace": 0}
SLOW = [pytest.param(name, 2, {}, marks=pytest.mark.slow) for name in (
    "glm", "glm4", "glm4_moe", "glm4_moe-no-qk-norm", "glm4_moe_lite", "glm4_moe-odd", "glm-tied-no-bias", "glm4v",
    "glm_moe_dsa")]


@functools.cache
def compiled(variant, name, max_batch, **changes):
    config, model, checkpoint = models.published(variant, **changes)
    out = Path(tempfile.mkdtemp(dir=models.scratch())) / f"{variant}.glmc"
    with once.alike((checkpoint / "config.json").read_text()):
        glmc.compile(checkpoint, out, target=name, max_len=models.MAX_LEN, max_batch=max_batch)
    return config, model, checkpoint, Artifact.open(out)


@functools.cache
def texts(form, own):
    """The MLIR of LAYER in a form."""
    return mlir.text_of(LAYER, form, BOUNDS, PANELS if own else {}, own=own)


@functools.cache
def module(form):
    out = Path(tempfile.mkdtemp(dir=models.scratch())) / f"layer_0.{form}.vmfb"
    iree.compile_text(iree.owning(texts(form, True), LAYER), out)
    return out


@pytest.mark.parametrize(("variant", "max_batch", "changes"), [("glm4_moe", 1, FEW), *SLOW])
def test_logits_and_tokens_are_those_of_the_published_model(variant, max_batch, changes):
    config, model, _, artifact = compiled(variant, RUNS, max_batch, **changes)
    session, vocabulary = glmc.load(artifact.folder), config.get("text_config", config)["vocab_size"]
    for ids in models.prompts(vocabulary, 1, 13, 30):
        gap = session.logits(torch.tensor([ids]))[0] - models.logits(model, ids)
        assert float(gap.abs().max()) <= 1e-4
        assert session.generate(ids, max_new_tokens=32).token_ids == models.greedy(model, ids, 32)
    rows = models.prompts(vocabulary, 5, 11)[:max_batch]
    made = session.generate_batch(rows, max_new_tokens=8)
    assert [one.token_ids for one in made] == [models.greedy(model, ids, 8) for ids in rows]


def test_prompts_in_pieces_are_prompts(monkeypatch):
    config, model, _, artifact = compiled("glm4_moe", RUNS, 1, **FEW)
    session = glmc.load(artifact.folder)
    monkeypatch.setattr(session.runner, "piece", 7)
    (ids,) = models.prompts(config["vocab_size"], 22)
    assert float((session.logits(torch.tensor([ids]))[0] - models.logits(model, ids)).abs().max()) <= 1e-4


def test_an_artefact_holds_readable_text_beside_each_module():
    _, _, _, artifact = compiled("glm4_moe", RUNS, 1, **FEW)
    regions = read_programs(artifact)["text"].regions
    for name in regions:
        for form in ("decode", "prefill"):
            text = artifact.read(f"regions/{name}.{form}.mlir").decode()
            assert f"func.func @{name}(" in text
            assert f"regions/{name}.{form}.vmfb" in artifact.files
            for local, role, _ in regions[name].inputs:
                assert f"%{local}: tensor<" in text
                assert role != "cache" or re.search(rf"%{local}: tensor<[^>]*> {{iree.abi.consume}}", text)
            assert not re.search(r"dense<\[|dense_resource", text)  # no weight is in the text
    proofs = {proof["region"]: proof["native_error"] for proof in artifact.json("proofs.json")["native"]}
    assert set(proofs) == {f"{name}.{form}" for name in regions for form in ("decode", "prefill")}
    assert max(proofs.values()) <= 1e-4


def test_it_is_compared_with_its_checkpoint():
    _, _, checkpoint, artifact = compiled("glm4_moe", RUNS, 1, **FEW)
    assert against(artifact, checkpoint).first is None


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("form", ["decode", "prefill", "decode_rows"])
def test_the_text_compiles_without_flags_of_ours(form, own):
    assert compiler.compile_str(texts(form, own), target_backends=["llvm-cpu"])


def test_stablehlo_is_written_when_asked():
    text = mlir.text_of(LAYER, "prefill", BOUNDS, {}, "stablehlo")
    assert "stablehlo.dot_general" in text
    assert "linalg." not in text


@pytest.mark.parametrize("form", ["decode", "prefill", "decode_rows"])
def test_a_cache_is_written_where_it_lies_and_nowhere_else(form):
    rows, tokens = {"decode": (1, 1), "prefill": (1, 5), "decode_rows": (3, 1)}[form]
    x, weight, keys = torch.randn(rows, tokens, 40), torch.randn(24, 40), torch.randn(rows, 32, 2, 12)
    where = torch.randperm(32)[:rows * tokens].view(rows, tokens)
    panels = torch.zeros(1, 40, 32)
    panels[0, :, :24] = weight.T
    wanted = keys.clone()
    wanted[torch.arange(rows).unsqueeze(1), where] = (x @ weight.T).unflatten(-1, (2, 12))
    (found,) = Loaded(module(form).read_bytes(), LAYER, "")([x, panels, keys, where])
    assert (found - x @ weight.T).abs().max() <= 1e-5
    assert (keys - wanted).abs().max() <= 1e-5


def test_a_cache_that_would_be_copied_is_refused():
    call = Loaded(module("decode").read_bytes(), LAYER, "")
    keys = torch.zeros(1, 33, 2, 12).flatten()[1:].view(-1)[:32 * 24].view(1, 32, 2, 12)
    with pytest.raises(InternalError, match="lie"):
        call([torch.zeros(1, 1, 40), torch.zeros(1, 40, 32), keys, torch.zeros(1, 1, dtype=torch.int64)])


def test_a_module_that_is_none_is_damaged():
    with pytest.raises(DamagedArtifact, match="cannot be loaded"):
        Loaded(b"no module at all" * 8, LAYER, "regions/layer_0.decode.vmfb")


def test_code_that_is_not_its_text_is_not_sealed(tmp_path):
    from glmc.program import Program, Step

    wrong = Region.parse(LAYER.text().replace("return (linear,)", "neg = aten.neg.default(linear)\n    return (neg,)"))
    step = Step("layer_0", ("input:x", "weight:w", "cache:keys.0", "input:positions"), ("value:1",), "all")
    (tmp_path / "layer_0.decode.vmfb").write_bytes(module("decode").read_bytes())
    (tmp_path / "layer_0.prefill.vmfb").write_bytes(module("prefill").read_bytes())
    good = prove_iree(Program({"layer_0": LAYER}, (step,), "value:1"), {"layer_0": PANELS}, Bounds(1, 40), tmp_path)
    assert 0 < max(proof.native_error for proof in good) <= 1e-4
    with pytest.raises(NumericError, match="not the equal"):
        prove_iree(Program({"layer_0": wrong}, (step,), "value:1"), {"layer_0": PANELS}, Bounds(1, 40), tmp_path)


def test_an_op_that_the_importer_lacks_is_refused_by_name_and_module(monkeypatch, tmp_path):
    _, _, checkpoint = models.published("glm4_moe", **FEW)
    monkeypatch.setenv("GLMC_ONLY", "rms_norm")
    stages = []
    with pytest.raises(UnsupportedTarget) as fault:
        glmc.compile(checkpoint, tmp_path / "x.glmc", target="mlir", max_len=40,
                     progress=lambda stage, *_: stages.append(stage))
    assert fault.value.field.startswith("model.layers.0.mlp.experts")
    assert "glmc.grouped_mm for mlir" in str(fault.value.found)
    assert "compile regions" in stages
    assert "pack weights" not in stages
    assert not (tmp_path / "x.glmc").exists()


@pytest.mark.parametrize("name", ["mlir", "mlir:stablehlo", RUNS])
def test_a_missing_package_is_told_before_anything_else(monkeypatch, tmp_path, name):
    monkeypatch.setattr(target, "_installed", lambda package: package != "torch_mlir")
    with pytest.raises(UnsupportedTarget, match="torch_mlir") as fault:
        glmc.compile(tmp_path / "no checkpoint", tmp_path / "x.glmc", target=name)
    assert fault.value.hint == "pip install 'glmc[mlir]'"


def test_what_runs_it_may_be_missing_too(monkeypatch):
    _, _, _, artifact = compiled("glm4_moe", RUNS, 1, **FEW)
    monkeypatch.setattr(target, "_installed", lambda package: package != "iree.runtime")
    with pytest.raises(IncompatibleArtifact, match="package that runs"):
        glmc.load(artifact.folder)


def test_text_is_handed_on_and_not_run():
    _, _, _, artifact = compiled("glm4", "mlir", 1, num_hidden_layers=1)
    assert {Path(name).suffix for name in artifact.files if name.startswith("regions/")} == {".region", ".mlir"}
    assert artifact.manifest["dtype"] == "float32"
    with pytest.raises(IncompatibleArtifact) as fault:
        glmc.load(artifact.folder)
    assert "mlir:llvm-cpu" in fault.value.hint


def test_quantised_weights_other_dtypes_and_ranks_are_refused(tmp_path):
    _, _, checkpoint, artifact = compiled("glm4_moe", RUNS, 1, **FEW)
    with pytest.raises(UsageError, match="only the native CPU engine"):
        glmc.compile(checkpoint, tmp_path / "x.glmc", target=RUNS, quant="int8")
    with pytest.raises(UsageError, match="does not compute in this dtype"):
        glmc.compile(checkpoint, tmp_path / "x.glmc", target=RUNS, dtype="bfloat16")
    assert "engine iree" in json.dumps(artifact.json("ledger.json")["ranks"])
