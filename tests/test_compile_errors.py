"""Compilations that must fail: each with its own error, and each leaving nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import models
import once
import pytest
import torch
from safetensors.torch import load_file, save_file

import glmc
from glmc import build
from glmc.errors import (
    CheckpointChanged,
    CheckpointError,
    ConfigError,
    DamagedShard,
    OutputExists,
    PromiseBroken,
    StorageError,
    UnknownFamily,
    UnknownName,
    UsageError,
    WeightMismatch,
    WeightMissing,
    WeightUnused,
)

GATE = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture
def source(tmp_path):
    """A copy of a good checkpoint of one layer, alone in a folder."""
    _, _, checkpoint = models.published("glm", num_hidden_layers=1)
    (tmp_path / "in").mkdir()
    return shutil.copytree(checkpoint, tmp_path / "in" / "checkpoint")


@pytest.fixture
def made_once(monkeypatch):
    """The model is surveyed and proved once for all tests whose fault is elsewhere."""
    monkeypatch.setattr(build, "survey", once.survey)
    monkeypatch.setattr(build, "prove", once.proofs)


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "model.glmc"


def compiled(source, out, **options):
    return glmc.compile(source, out, **{"target": "fx", "max_len": 16, **options})


def left(out):
    """What a compilation left beside its output, its lock aside."""
    return sorted(p.name for p in out.parent.iterdir() if not p.name.endswith(".lock"))


def edit(source, change):
    weights = load_file(source / "model.safetensors")
    change(weights)
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})


def configure(source, **fields):
    config = json.loads((source / "config.json").read_text()) | fields
    (source / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


@pytest.mark.usefixtures("made_once")
@pytest.mark.parametrize(("change", "error", "word"), [
    (lambda w: w.pop(GATE), WeightMissing, GATE),
    (lambda w: w.update(extra=torch.zeros(2)), WeightUnused, "extra"),
    (lambda w: w.update({GATE: w[GATE].t().contiguous()}), WeightMismatch, GATE),
    (lambda w: w.update({GATE: w[GATE].to(torch.int32)}), WeightMismatch, "I32"),
], ids=["missing", "extra", "transposed", "int"])
def test_weights_that_do_not_fit(source, out, change, error, word):
    edit(source, change)
    with pytest.raises(error, match=word) as fault:
        compiled(source, out)
    assert fault.value.exit == 3
    assert left(out) == []


@pytest.mark.usefixtures("made_once")
@pytest.mark.parametrize("kept", [0.99, 0.5, 0.001, 0])
def test_a_truncated_shard(source, out, kept):
    shard = source / "model.safetensors"
    os.truncate(shard, int(shard.stat().st_size * kept))
    with pytest.raises(DamagedShard):
        compiled(source, out)
    assert left(out) == []


def test_a_folder_that_is_no_checkpoint(tmp_path, out):
    with pytest.raises(CheckpointError):
        compiled(tmp_path / "nowhere", out)
    with pytest.raises(ConfigError):
        compiled(tmp_path, out)
    assert left(out) == []


@pytest.mark.parametrize("name", ["llama", "glm4_moe_x", "../glm", "fields", "dense", "__init__", "", "GLM", "glm "])
def test_an_unknown_family(source, name):
    configure(source, model_type=name)
    with pytest.raises(UnknownFamily):
        glmc.plan(source)


ABSURD = [
    ("model_type", ...), ("model_type", None), ("model_type", 4), ("model_type", ["glm"]),
    *((field, value) for value in (..., 0, -1, 1 << 40, 2.5, "8", True, None)
      for field in ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size",
                    "max_position_embeddings")),
    ("num_key_value_heads", 4), ("num_key_value_heads", 0), ("head_dim", 1), ("head_dim", -16), ("rms_norm_eps", 0),
    ("rms_norm_eps", -1e-5), ("rms_norm_eps", "1e-5"), ("rms_norm_eps", ...), ("partial_rotary_factor", 0),
    ("partial_rotary_factor", 1.5), ("partial_rotary_factor", 0.2), ("rope_theta", -1.0), ("rope_parameters", [1]),
    ("rope_parameters", {"rope_type": "yarn", "factor": 4.0}), ("rope_scaling", {"type": "linear"}),
    ("hidden_act", "gelu"), ("tie_word_embeddings", "yes"), ("quantization_config", [4]), ("torch_dtype", "float16"),
]
ABSURD_EXPERTS = [
    ("n_routed_experts", 0), ("n_routed_experts", 1 << 20), ("num_experts_per_tok", 9), ("num_experts_per_tok", 0),
    ("n_group", 3), ("n_group", 0), ("topk_group", 5),
    ("n_shared_experts", -1), ("n_shared_experts", 1000), ("first_k_dense_replace", -1),
    ("routed_scaling_factor", -2.5), ("use_qk_norm", "no"), ("moe_intermediate_size", ...),
]


@pytest.mark.parametrize(("family", "field", "value"), [*(("glm", f, v) for f, v in ABSURD),
                                                        *(("glm4_moe", f, v) for f, v in ABSURD_EXPERTS)], ids=str)
def test_an_absurd_field(tmp_path, family, field, value):
    (tmp_path / "config.json").write_text(json.dumps(models.tiny_config(family)))
    configure(tmp_path, **{field: value})
    with pytest.raises(ConfigError) as fault:
        glmc.plan(tmp_path)
    assert fault.value.field
    assert fault.value.exit == 3


@pytest.mark.parametrize("method", ["gptq", "awq", None])
def test_a_quantisation_that_is_not_read_is_planned_and_not_compiled(source, out, method, monkeypatch):
    configure(source, quantization_config={"bits": 4, "quant_method": method})
    with pytest.raises(ConfigError, match="quantisation") as fault:
        compiled(source, out)
    assert fault.value.field == "quantization_config.quant_method"
    assert fault.value.found == method
    assert fault.value.exit == 3
    assert left(out) == []
    monkeypatch.setattr("glmc.planner.survey", once.survey)
    assert any("not compiled" in note for note in glmc.plan(source).notes)


@pytest.mark.parametrize(("options", "error", "word"), [
    ({"max_len": 1}, UsageError, "max_len"), ({"max_len": 513}, UsageError, "max_position_embeddings = 512"),
    ({"max_len": True}, UsageError, "max_len"), ({"max_len": 8.0}, UsageError, "max_len"),
    ({"max_batch": 0}, UsageError, "max_batch"), ({"max_batch": 1 << 20}, UsageError, "max_batch"),
    ({"quant": "int3"}, UsageError, "quant"), ({"dtype": "float8"}, UsageError, "dtype"),
    ({"target": "abacus"}, UnknownName, "abacus"),
        ({"target": "onnx", "dtype": "bfloat16"}, UsageError, "onnx does not compute in this dtype"),
        ({"target": "onnx", "quant": "int8"}, UsageError, "quantised weights"),
], ids=str)
def test_options_that_cannot_be(source, out, options, error, word):
    with pytest.raises(error, match=word) as fault:
        compiled(source, out, **options)
    assert fault.value.exit == 2
    assert left(out) == []


@pytest.mark.parametrize("make", [
    lambda p: p.mkdir(), lambda p: p.write_text("mine"), lambda p: p.symlink_to("nowhere"),
], ids=["folder", "file", "dangling link"])
def test_an_output_that_exists_is_left_alone(source, out, make):
    make(out)
    before = os.lstat(out)
    with pytest.raises(OutputExists):
        compiled(source, out)
    assert os.lstat(out).st_ino == before.st_ino
    assert left(out) == [out.name]


@pytest.mark.usefixtures("made_once")
@pytest.mark.parametrize("stage", ["trace", "pack weights", "seal"])
def test_an_interrupted_compilation_leaves_nothing_and_can_be_repeated(source, out, stage):
    def progress(name, *_):
        if name == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compiled(source, out, progress=progress)
    assert left(out) == []
    if stage == "pack weights":
        compiled(source, out)
        assert left(out) == [out.name]
        assert len(glmc.load(out).generate([5], max_new_tokens=1).token_ids) == 1


def rewritten(source):
    edit(source, lambda weights: weights[GATE].add_(1))


def swapped(source):
    twin = source / "twin"
    shutil.copyfile(source / "model.safetensors", twin)
    twin.replace(source / "model.safetensors")


def reconfigured(source):
    configure(source, rms_norm_eps=1e-3)


@pytest.mark.usefixtures("made_once")
@pytest.mark.parametrize(("change", "stage"), [(rewritten, "trace"), (swapped, "pack weights"), (reconfigured, "seal"),
                                               (rewritten, "seal")])
def test_a_checkpoint_edited_meanwhile(source, out, change, stage):
    done = []

    def progress(name, *_):
        if name == stage and not done:
            done.append(change(source))

    with pytest.raises(CheckpointChanged):
        compiled(source, out, progress=progress)
    assert left(out) == []


@pytest.mark.usefixtures("made_once")
def test_a_full_disk(source, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    mount = subprocess.run(command, capture_output=True, text=True, check=False)
    if mount.returncode:
        pytest.skip(f"this machine mounts no tmpfs: {mount.stderr.strip()}")
    try:
        with pytest.raises(StorageError) as fault:
            compiled(source, small / "model.glmc")
        assert fault.value.exit == 5
        assert left(small / "model.glmc") == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_folder_without_permission(source, tmp_path):
    with pytest.raises(StorageError):
        compiled(source, tmp_path / "no" / "such" / "folder.glmc")


def test_a_broken_promise_is_told_beside_a_whole_artefact(source, out, monkeypatch):
    from glmc.families import glm

    monkeypatch.setattr(glm, "promises", lambda dims: {"layers.0": {"moe_route": 1}})
    with pytest.raises(PromiseBroken, match=r"layers\.0 promises 1 `moe_route`, proved 0") as fault:
        compiled(source, out)
    made = fault.value.finished
    made.verify()
    assert made.folder == out
    (broken,) = made.json("ledger.json")["broken"]
    assert "nearest:" in broken


@pytest.mark.usefixtures("made_once")
def test_the_default_length_is_what_the_model_has(source, out):
    assert glmc.compile(source, out, target="fx").manifest["bounds"]["max_len"] == 512
