"""Target `onnx`: every family gives transformers' numbers, the model is what the ledger says, and what it lacks is refused."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from pathlib import Path

import models
import numpy as np
import once
import onnx
import onnxruntime
import pytest
import torch

import glmc
from glmc.against import against
from glmc.artifact import Artifact
from glmc.errors import DamagedArtifact, UnsupportedTarget, UsageError
from glmc.passes import onnx_ops, onnx_region
from glmc.program import ONNX
from glmc.runtime.engines import onnx as engine
from glmc.target import TARGETS

NEW = 32
QUICK = ("glm", "glm4", "glm4_moe", "glm4_moe-no-qk-norm", "glm4_moe_lite")
VARIANTS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in models.VARIANTS]
FEW = ("glm4", "glm4_moe", "glm4_moe_lite")


@pytest.fixture(params=VARIANTS)
def made(request):
    return models.made(request.param, target="onnx")


@pytest.fixture(params=FEW)
def one(request):
    return models.made(request.param, target="onnx")


def proto(made):
    return onnx.load(made.out / ONNX, load_external_data=False)


def nodes(model):
    """Op -> how often it is run in all, counting a function's body for each of its calls, and branches once."""
    def ops(graph):
        for node in graph:
            yield node.op_type
            for attribute in node.attribute:
                yield from ops(attribute.g.node)

    bodies = {function.name: Counter(ops(function.node)) for function in model.functions}
    total = Counter()
    for node in model.graph.node:
        total += bodies.get(node.op_type, Counter([node.op_type]))
    return total


def test_logits(made):
    for ids in models.prompts(131, 1, 2, 17, models.MAX_LEN):
        wanted = models.logits(made.reference, ids)
        assert wanted.abs().max() > 0.5, "logits near zero would hide a difference"
        assert (made.session.logits(torch.tensor([ids]))[0] - wanted).abs().max() < 1e-4


def test_greedy_tokens(made):
    for ids in models.prompts(131, 1, 5, 16):
        assert made.session.generate(ids, max_new_tokens=NEW).token_ids == models.greedy(made.reference, ids, NEW)


def test_a_batch_of_unequal_prompts_is_its_rows_alone(made):
    rows = models.prompts(131, 5, 16, 1)
    batch = made.session.generate_batch(rows, max_new_tokens=NEW)
    assert [b.token_ids for b in batch] == [made.session.generate(ids, max_new_tokens=NEW).token_ids for ids in rows]


def test_every_norm_and_every_turn_that_onnx_can_say_is_one_node(made):
    ledger = {row["fusion"]: row for row in made.session.artifact.json("ledger.json")["ledger"]}
    found = nodes(proto(made))
    for op, fusion in (("RMSNormalization", "rms_norm"), ("RotaryEmbedding", "rope")):
        row = ledger[fusion]
        assert row["by_scope"]["expected"] == row["by_scope"]["proved"]
        assert found[op] == row["taken"] == row["expected"] - len(row["refused"])
        assert {r["reason"].split(" ")[0] for r in row["refused"]} <= {"RotaryEmbedding"}
    attention = ledger.get("attention", {"taken": 0})["taken"]
    latent = ledger.get("latent_attention", {"taken": 0})["taken"]
    assert found["Attention"] == attention + 2 * latent, "latent attention is written in two ways, of which one runs"


@pytest.mark.parametrize(("variant", "turned"), [("glm", 6), ("glm4", 6), ("glm4_moe", 6), ("glm4_moe_lite", 0),
                                                 ("glm4_moe_lite-halves", 4)])
def test_pairs_of_part_of_the_width_are_one_node_and_pairs_that_become_halves_are_not(variant, turned):
    made = models.made(variant, target="onnx")
    assert nodes(proto(made))["RotaryEmbedding"] == turned
    (row,) = (row for row in made.session.artifact.json("ledger.json")["ledger"] if row["fusion"] == "rope")
    assert row["taken"] == turned
    assert all("pairs become halves" in refused["reason"] for refused in row["refused"])
    assert row["taken"] + len(row["refused"]) == row["expected"]


def test_the_checker_and_shape_inference_pass(made):
    onnx.checker.check_model(str(made.out / ONNX), full_check=True)
    inferred = onnx.shape_inference.infer_shapes(proto(made), check_type=True, strict_mode=True, data_prop=True)
    assert [d.dim_param or d.dim_value for d in inferred.graph.output[0].type.tensor_type.shape.dim] == ["B", "R", 131]


def test_weights_lie_in_the_artefacts_own_files(one):
    model = proto(one)
    held = one.session.artifact.load_weights()
    assert {weight.name for weight in model.graph.initializer} == set(held)
    for weight in model.graph.initializer:
        assert weight.data_location == onnx.TensorProto.EXTERNAL
        told = {entry.key: entry.value for entry in weight.external_data}
        assert told["location"] in one.session.artifact.shards()
        raw = (one.out / told["location"]).read_bytes()[int(told["offset"]):][:int(told["length"])]
        assert raw == held[weight.name].numpy().tobytes()


def alone(folder):
    session = onnxruntime.InferenceSession(folder / ONNX, providers=["CPUExecutionProvider"])
    return session, {given.name: given.shape for given in session.get_inputs()}


def test_the_model_runs_alone_in_pieces_and_in_rows(one):
    """A prompt whole, and then again as two pieces of two rows, one of which has a longer cache than it needs."""
    session, inputs = alone(one.out)
    (ids,) = models.prompts(131, 11)
    wanted = models.logits(one.reference, ids).numpy()
    caches = {name: [2, 16, *shape[2:]] for name, shape in inputs.items() if name.startswith("past.")}

    def run(begin, end, rows, past):
        given = {"input_ids": np.array([ids[begin:end]] * 2), "positions": np.arange(begin, end)[None].repeat(2, 0)}
        made = session.run(None, given | {"rows": np.array(rows)} | past)
        return made[0], dict(zip(past, made[1:], strict=True))

    past = {name: np.zeros(shape, np.float32) for name, shape in caches.items()}
    whole, _ = run(0, 11, range(11), past)
    assert abs(whole - wanted).max() < 1e-4
    first, past = run(0, 7, [2, 6], past)
    assert abs(first - wanted[[2, 6]]).max() < 1e-4
    second, _ = run(7, 11, [3], past)
    assert abs(second - wanted[10]).max() < 1e-4


def test_a_long_prompt_runs_in_pieces(monkeypatch, one):
    (ids,) = models.prompts(131, 21)
    whole = one.session.extend(0, ids, 0, every_row=True).clone()
    monkeypatch.setattr(engine, "PIECE", 8)
    assert (one.session.extend(0, ids, 0, every_row=True) - whole).abs().max() < 1e-5
    assert (one.session.extend(0, ids, 0) - whole[:, -1:]).abs().max() < 1e-5


def test_new_tokens_are_written_where_the_cache_lies(one):
    (ids,) = models.prompts(131, 9)
    cache = one.session.runner.cache
    one.session.extend(0, ids, 0)
    before = {name: (array.ctypes.data, array[0, :9].copy()) for name, array in cache.whole.items()}
    one.session.advance(torch.tensor([[5]]), torch.tensor([[9]]))
    for name, array in cache.whole.items():
        assert array.ctypes.data == before[name][0]
        assert np.array_equal(array[0, :9], before[name][1])
        assert array[0, 9].any()


def test_layers_of_one_kind_are_one_function(one):
    model = proto(one)
    calls = Counter(node.op_type for node in model.graph.node if node.domain)
    assert set(calls) == {function.name for function in model.functions} == set(one.session.program.regions)
    assert sum(calls.values()) == len(one.session.program.steps) > len(calls)


def test_regions_of_the_sealed_model_agree_with_the_published_one(one):
    assert against(one.session.artifact, one.checkpoint).first is None


def test_a_model_that_was_tampered_with_is_not_opened(one, tmp_path):
    folder = shutil.copytree(one.out, tmp_path / "copy.glmc")
    (folder / ONNX).chmod(0o644)
    data = bytearray((folder / ONNX).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / ONNX).write_bytes(data)
    with pytest.raises(DamagedArtifact, match=ONNX.replace(".", r"\.")):
        glmc.load(folder)


def test_without_onnx_runtime_it_is_said_what_to_install(monkeypatch, one):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UnsupportedTarget, match=r"onnxruntime(.|\n)*pip install 'glmc\[onnx\]'"):
        glmc.load(one.out)


def test_an_op_that_nothing_writes_is_refused_with_its_module_before_weights_are_packed(monkeypatch, tmp_path):
    _, _, checkpoint = models.published("glm4")
    monkeypatch.delitem(onnx_ops.TABLE, "aten.embedding.default")
    monkeypatch.setattr("glmc.build.pack", None)
    with once.alike((checkpoint / "config.json").read_text()), pytest.raises(UnsupportedTarget) as fault:
        glmc.compile(checkpoint, tmp_path / "out.glmc", target="onnx")
    assert "onnx" in fault.value.what
    assert (fault.value.field, fault.value.found) == ("aten.embedding.default", "model.embed_tokens")
    assert not list(tmp_path.glob("*.glmc"))


def test_the_module_of_an_op_in_a_layer_is_told_with_its_layer(monkeypatch):
    program = models.made("glm4_moe", target="onnx").session.program
    monkeypatch.setattr(onnx_region.kernels, "has", lambda name, machine: name != "moe_route")
    with pytest.raises(UnsupportedTarget) as fault:
        onnx_region.check(program)
    assert (fault.value.field, fault.value.found) == ("glmc.moe_route", "model.layers.1.mlp.gate")


def test_a_bfloat16_checkpoint_becomes_float32_and_it_is_said(tmp_path):
    _, model, checkpoint = models.published("glm4", "bfloat16", num_hidden_layers=1)
    artifact = glmc.compile(checkpoint, tmp_path / "out.glmc", target="onnx", max_len=models.MAX_LEN)
    assert artifact.manifest["dtype"] == "float32"
    assert [note for note in artifact.json("ledger.json")["notes"] if "float32" in note and "bfloat16" in note]
    (ids,) = models.prompts(131, 9)
    wanted = models.logits(model.float(), ids)
    assert (glmc.load(artifact.folder).logits(torch.tensor([ids]))[0] - wanted).abs().max() < 1e-4


def test_weights_may_be_linked(tmp_path):
    _, model, checkpoint = models.published("glm4", num_hidden_layers=1)
    shutil.copytree(checkpoint, tmp_path / "checkpoint")
    artifact = glmc.compile(tmp_path / "checkpoint", tmp_path / "out.glmc", target="onnx", max_len=32, weights="link")
    assert artifact.linked_files()
    (ids,) = models.prompts(131, 9)
    assert (glmc.load(artifact.folder).logits(torch.tensor([ids]))[0] - models.logits(model, ids)).abs().max() < 1e-4


def test_several_ranks_are_refused_by_name(one):
    from glmc.runtime.share import open_placement

    assert any("onnx" in note for note in one.session.artifact.json("ledger.json")["ranks"])
    with pytest.raises(UsageError, match="the engine onnx runs on one rank"):
        open_placement(Artifact.open(one.out), 2)


@pytest.mark.slow
def test_code_does_not_grow_with_depth(tmp_path):
    """Of 92 layers and of 4: the functions are the same; what binds them to weights grows."""
    from glmc.passes import onnx as model
    from glmc.survey import survey

    sizes = []
    for layers in (4, 92):
        folder = Path(tmp_path / str(layers))
        folder.mkdir()
        models.describe(models.tiny_config("glm4_moe", torch_dtype="float32", num_hidden_layers=layers), folder)
        surveyed = survey(folder, TARGETS["onnx"])
        functions = model.functions_of(surveyed.program, "glm4_moe")
        places = dict.fromkeys(surveyed.weights, ("weights-00001.safetensors", 1 << 40, 1 << 30))
        read = onnx.load_from_string(model.model_of(surveyed.program, functions, places, "0"))
        sizes.append(sum(function.ByteSize() for function in read.functions))
    assert sizes[1] == sizes[0]
