"""Artefacts for a GPU and for an NPU, on a machine that has neither: compiled, inspected, refused with a direction, checked."""

from __future__ import annotations

import json
import subprocess
import sys

import models
import pytest
import torch
from elsewhere import made
from fresh import without_a_compiler

import glmc
from glmc.against import against
from glmc.artifact import Artifact
from glmc.kernels import triton
from glmc.passes.choose import choose
from glmc.passes.lower import Bounds, sample
from glmc.program import KERNELS
from glmc.region import Bound
from glmc.runtime.memory import Cache
from glmc.runtime.opened import read_programs
from glmc.runtime.sealed import Sealed
from glmc.sites import find_sites
from glmc.survey import parts_of
from glmc.target import TARGETS
from glmc.trace import trace
from glmc.trail import Trail

CHECKED = {"cuda:sm_90": "triton-interpreted", "npu:ascend910b": "npu-emulated"}
LATENT = {"glm4_moe_lite": {"num_hidden_layers": 1},
          "glm_moe_dsa": {"num_hidden_layers": 2, "first_k_dense_replace": 2, "indexer_types": ("full", "shared")}}
"""Variant -> what is changed: no layer has experts; one without an indexer; one with its own and one that shares it."""
ON_NPU = ("glm", "glm4", "glm4_moe", "glm4_moe-no-qk-norm")


@pytest.fixture(scope="module")
def gpu():
    """A dense and a routed layer for a GPU."""
    return made("glm4_moe", "cuda:sm_90", num_hidden_layers=2)


def agrees(config, model, session, lengths, steps):
    for ids in models.prompts(config["vocab_size"], *lengths):
        wanted = models.logits(model, ids)
        assert float((session.logits(torch.tensor([ids]))[0] - wanted).abs().max()) <= 1e-4
        assert session.generate(ids, max_new_tokens=steps).token_ids == models.greedy(model, ids, steps)


def test_a_gpu_artefact_holds_its_kernels_and_what_they_use(gpu):
    _, _, artifact = gpu
    index = artifact.json(KERNELS)
    assert index["gpu"] == ["cuda", 90, 32]
    kernels = {k["kernel"].rsplit(".", 1)[1] for k in index["kernels"]}
    assert {"rms_norm_kernel", "add_rms_norm_kernel", "split_qkv_norm_rope_kernel", "attention_kernel", "moe_route_kernel",
            "gate_up_kernel", "grouped_mm_kernel", "silu_mul_kernel", "greedy_kernel", "nucleus_kernel"} <= kernels
    for kernel in index["kernels"]:
        assert kernel["spilled_bytes"] == 0, kernel["name"]
        assert 0 < kernel["registers"] <= 255
        assert artifact.read(f"kernels/{kernel['name']}.cubin")[:4] == b"\x7fELF"
    text = json.dumps([artifact.json(f"kernels/{k['name']}.json") for k in index["kernels"]])
    assert str(artifact.folder.parent.parent) not in text
    assert "/site-packages/" not in text


def launched(artifact, *sizes):
    """The launches of an artefact's regions at sizes (rows, new tokens, slots), over views of a real cache."""
    program, bounds, seen = read_programs(artifact)["text"], Bounds(2, models.MAX_LEN), set()
    cache = Cache(program, bounds.max_batch, models.MAX_LEN, torch.device("meta"))
    with triton.noted() as notes, torch.device("meta"), torch.no_grad():
        for step in program.steps:
            region = program.regions[step.region]
            for rows, new, slots in sizes if step.region not in seen else ():
                views = cache.views(0, rows, slots)
                given = [views[name] if role == "cache" else sample(spec, role, {"B": rows, "S": new, "L": slots}, bounds)
                         for name, (_, role, spec) in zip(step.inputs, region.inputs, strict=True)]
                Bound(region, "triton", "meta")(*given)
            seen.add(step.region)
    return list(notes)


def test_every_launch_within_the_bounds_was_built_ahead(gpu):
    """At lengths and batches that no rung of the ladder has."""
    _, _, artifact = gpu
    sealed = Sealed(artifact)
    asked = launched(artifact, (1, 1, 37), (1, 1, 2), (1, 7, 11), (1, 61, 80), (2, 1, 33))
    for one in asked:
        assert sealed.find(one.digest, one.name) is not None, one.facts()
    assert len(asked) > 10
    assert not sealed.missing
    with pytest.warns(UserWarning, match="compiled now"):
        assert sealed.find("0" * 16, "rope_kernel") is None
    assert sealed.missing == {"rope_kernel": 1}


def test_a_gpu_artefact_gives_transformers_numbers_in_the_interpreter(gpu):
    config, model, artifact = gpu
    agrees(config, model, glmc.load(artifact.folder, device="triton-interpreted"), (9,), 2)


def test_no_compiler_is_loaded_or_started(gpu):
    _, _, artifact = gpu
    assert without_a_compiler(artifact.folder, "triton-interpreted") == ""


def test_rows_of_a_batch_in_the_interpreter(gpu):
    config, model, artifact = gpu
    session = glmc.load(artifact.folder, device="triton-interpreted")
    prompts = models.prompts(config["vocab_size"], 3, 6)
    answers = session.generate_batch(prompts, max_new_tokens=2)
    assert [a.token_ids for a in answers] == [models.greedy(model, ids, 2) for ids in prompts]


@pytest.mark.slow  # a minute; the kernels by themselves are examined in tests/kernels
@pytest.mark.parametrize("variant", ["glm4_moe_lite", "glm_moe_dsa"])
def test_latent_attention_and_its_indexer_in_the_interpreter(variant):
    """Beyond the slots that an indexer chooses, many new tokens and one, one row and several."""
    config, model, artifact = made(variant, "cuda:sm_90", **LATENT[variant])
    for row in artifact.json("ledger.json")["ledger"]:
        if row["fusion"] in ("latent_attention", "lightning_indexer"):
            assert row["taken"] == row["expected"], row
    asked, sealed = launched(artifact, (1, 1, 37), (1, 1, 7), (1, 7, 11), (2, 1, 33)), Sealed(artifact)
    assert {"latent_attention_kernel", "head_product_kernel", "join_kernel"} <= {one.name for one in asked}
    assert all(sealed.find(one.digest, one.name) for one in asked)
    session = glmc.load(artifact.folder, device="triton-interpreted")
    agrees(config, model, session, (9,), 2)
    prompts = models.prompts(config["vocab_size"], 3, 7)
    answers = session.generate_batch(prompts, max_new_tokens=2)
    assert [a.token_ids for a in answers] == [models.greedy(model, ids, 2) for ids in prompts]


@pytest.mark.parametrize("variant", ON_NPU)
def test_an_npu_artefact_equals_transformers_on_the_emulation(variant):
    config, model, artifact = made(variant, "npu:ascend910b")
    rows = {r["fusion"]: r for r in artifact.json("ledger.json")["ledger"]}
    assert rows["split_qkv_norm_rope"]["taken"] == rows["split_qkv_norm_rope"]["expected"] == config["num_hidden_layers"]
    session = glmc.load(artifact.folder, device="npu-emulated")
    agrees(config, model, session, (1, 9), 12)
    prompts = models.prompts(config["vocab_size"], 4, 11)
    answers = session.generate_batch(prompts, max_new_tokens=8)
    assert [a.token_ids for a in answers] == [models.greedy(model, ids, 8) for ids in prompts]


@pytest.mark.parametrize("target", [pytest.param(t, marks=[pytest.mark.slow] * t.startswith("cuda")) for t in CHECKED])
def test_it_is_verified_layer_by_layer_on_the_device_that_checks(target):
    changes = {"num_hidden_layers": 2} if target.startswith("cuda") else {}
    _, _, artifact = made("glm4_moe", target, **changes)
    checkpoint = models.published("glm4_moe", **changes)[2]
    answer = against(artifact, checkpoint, device=CHECKED[target])
    assert answer.first is None
    assert {row.module for row in answer.rows} >= {"model.layers.0", "model.layers.1", "lm_head", "logits"}


def test_inspect_shows_the_kernels(gpu):
    _, _, artifact = gpu
    done = subprocess.run([sys.executable, "-m", "glmc", "inspect", artifact.folder, "--json"], capture_output=True, text=True,
                          check=True)
    said = json.loads(done.stdout)
    assert said["manifest"]["target"] == "cuda:sm_90"
    assert said["here"].startswith("runs" if torch.cuda.is_available() else "refused: torch sees no such GPU")
    assert {k["name"] for k in said["kernels"]} == {k["name"] for k in Artifact.open(artifact.folder).json(KERNELS)["kernels"]}
    # Two layers: q, k and v, and o; the router; gate and up, and down, of one dense layer and one shared expert; the head.
    assert said["products"] == {"products": 2 * 2 + 1 + 2 * 2 + 1, "gated": 2, "adding": 2, "widening": 0}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_every_target_decides_on_every_site_here(dtype):
    """One search, as `glmc plan` makes it, and every target's decisions on it, on a machine that has none of them."""
    config = models.tiny_config("glm4_moe", num_hidden_layers=1, first_k_dense_replace=0)
    (part,) = parts_of(config, dtype)[1]
    traced = trace(part.module, part.args, part.dynamic)
    sites = find_sites(traced, Trail()).sites
    for name, target in TARGETS.items():
        decided = choose(sites, traced.graph, target)
        assert len(decided) == len(sites)
        assert all(d.site.place and d.reason != "" for d in decided)
        taken = {d.site.fusion for d in decided if d.reason is None}
        wanted = {"moe_experts", "rope" if name == "onnx" else "split_qkv_norm_rope"}
        if str(dtype).removeprefix("torch.") in target.dtypes:
            assert taken >= wanted, name
        assert "moe_route" in taken, "which is float32 in any model"
