"""Plans: the contract of their JSON, promises kept by every variant, promises broken when a spelling changes."""

from __future__ import annotations

import json
import math

import models
import pytest
import torch

import glmc
from glmc import families
from glmc.errors import PromiseBroken, UnknownName
from glmc.target import TARGETS, Target

KEYS = {"model_type", "architecture", "layers", "parameters", "regions", "ledger", "memory", "roofline", "seconds"}
ROW = {"fusion", "expected", "proved", "taken", "refused", "predicted_us", "measured_us"}


def write(folder, family, **changes):
    (folder / "config.json").write_text(json.dumps(models.tiny_config(family, **changes)))
    return folder / "config.json"


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    config = write(tmp_path_factory.mktemp("plan"), "glm4_moe", torch_dtype="bfloat16")
    return glmc.plan(config, target="cpu", max_len=100, max_batch=2)


def test_the_json_has_the_keys_that_scripts_rely_on(planned):
    data = json.loads(json.dumps(planned.to_json()))
    assert set(data) >= KEYS
    assert set(data["parameters"]) == {"total", "active_per_token"}
    assert set(data["regions"]) == {"distinct", "calls"}
    assert set(data["memory"]) == {"weights_bytes", "kv_bytes_per_token", "peak_bytes"}
    assert set(data["roofline"]) >= {"target", "bytes_per_token", "tokens_per_second"}
    assert all(set(row) >= ROW for row in data["ledger"])
    assert (data["model_type"], data["architecture"], data["layers"]) == ("glm4_moe", "Glm4MoeForCausalLM", 3)


def test_its_figures_are_those_of_the_published_model(planned):
    _, model, _ = models.published("glm4_moe")
    sizes = {n: p.numel() for n, p in model.state_dict().items()}
    total = sum(sizes.values())
    routed = sum(n for name, n in sizes.items() if ".experts." in name)
    assert planned.parameters == {"total": total, "active_per_token": total - routed + int(routed * 3 / 8)}
    assert planned.memory["kv_bytes_per_token"] == 2 * 3 * 2 * 16 * 2
    assert 2 * total <= planned.memory["weights_bytes"] <= 2.1 * total
    assert planned.memory["peak_bytes"] > planned.memory["weights_bytes"] + 200 * planned.memory["kv_bytes_per_token"]
    speed = planned.roofline["bandwidth_bytes_per_second"] / planned.roofline["bytes_per_token"]
    assert math.isclose(planned.roofline["tokens_per_second"], speed, rel_tol=1e-3)


def test_a_target_without_kernels_can_be_planned_for(tmp_path):
    plan = glmc.plan(write(tmp_path, "glm", num_hidden_layers=1), target="mlir:llvm-cpu")
    for row in plan.to_json()["ledger"]:
        assert row["taken"] + len(row["refused"]) == row["proved"]
        assert row["predicted_us"] is None or row["taken"]


@pytest.mark.parametrize("family", families.names())
def test_every_part_of_every_family_keeps_its_promises(tmp_path, monkeypatch, family):
    monkeypatch.setitem(TARGETS, "none", Target("none", "none", "none", 40e9, 2.0))
    plan = glmc.plan(write(tmp_path, family), target="none")
    assert plan.notes == []
    assert {"rope", "rms_norm"} - {"rms_norm" if family == "glm_image_dit" else ""} <= {
        row["fusion"] for row in plan.to_json()["ledger"] if row["proved"]}
    for row in plan.to_json()["ledger"]:
        assert row["by_scope"]["expected"] == row["by_scope"]["proved"], row["fusion"]
        assert (row["taken"], len(row["refused"])) == (0, row["proved"]), "this version has no kernel for that machine"
        assert all("no kernel for none" in r["reason"] or "cut" in r["reason"] for r in row["refused"])


def test_an_unknown_target_is_named(tmp_path):
    with pytest.raises(UnknownName, match="abacus"):
        glmc.plan(write(tmp_path, "glm"), target="abacus")


@pytest.mark.parametrize("variant", [v for v in models.VARIANTS if v != "glm4_moe_lite-halves"])  # the same sites in both
def test_every_promise_is_kept_and_nothing_more_is_found(variant):
    made = models.made(variant, target="cpu")  # made for `families/test_parity.py` too
    ledger = made.session.artifact.json("ledger.json")
    assert ledger["notes"] == []
    assert ledger["ledger"]
    for row in ledger["ledger"]:
        assert row["by_scope"]["expected"] == row["by_scope"]["proved"], row["fusion"]
        assert row["taken"] + len(row["refused"]) == row["proved"]
        assert all(r["reason"] and r["site"] for r in row["refused"])
    proofs = made.session.artifact.json("proofs.json")["proofs"]
    assert sum(p["places"] for p in proofs) == sum(row["taken"] for row in ledger["ledger"])


def squared(self, x):
    """RMS norm in another spelling of the same numbers: a product in the place of a power."""
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt((wide * wide).mean(-1, keepdim=True) + self.variance_epsilon)
    return self.weight * wide.to(x.dtype)


def rolled(x):
    """rotate_half in another spelling of the same numbers."""
    half = x.shape[-1] // 2
    ones = torch.ones(half, dtype=x.dtype, device=x.device)
    return x.roll(half, -1) * torch.cat((-ones, ones))


@pytest.mark.parametrize(("where", "spelling", "fusion", "agreed"), [
    ("Glm4MoeRMSNorm.forward", squared, "rms_norm", "aten.pow.Tensor_Scalar"),
    ("rotate_half", rolled, "rope", "aten.cat.default"),
])
def test_a_new_spelling_breaks_the_promise_and_shows_the_miss(tmp_path, monkeypatch, where, spelling, fusion, agreed):
    from transformers.models.glm4_moe import modeling_glm4_moe

    _, model, _ = models.published("glm4_moe-no-bias")
    ids = models.prompts(131, 9)[0]
    before = models.logits(model, ids)
    owner = getattr(modeling_glm4_moe, where.split(".")[0]) if "." in where else modeling_glm4_moe
    monkeypatch.setattr(owner, where.split(".")[-1], spelling)
    assert (models.logits(model, ids) - before).abs().max() < 1e-5, "the numbers must be the same"
    with pytest.raises(PromiseBroken) as fault:
        glmc.plan(write(tmp_path, "glm4_moe", num_hidden_layers=2))
    text = str(fault.value)
    assert fault.value.exit == 3
    plan = fault.value.finished.to_json()
    (row,) = [r for r in plan["ledger"] if r["fusion"] == fusion]
    assert row["proved"] < row["expected"]
    assert any(fusion in b for b in plan["broken"])
    for word in ("layers.0", fusion, "promises", "reference  ", "model  ", agreed, "also", "steps of"):
        assert word in text, (word, text)
