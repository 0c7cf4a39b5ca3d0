"""Fuse if faster on a GPU: a model compiled where it will run has measured figures in its ledger, and gives the same tokens."""

from __future__ import annotations

import models
import pytest
import torch

import glmc
from glmc import gpu
from glmc.kernels.timing import GpuClock
from glmc.passes.faster import NOISE

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    config, model, checkpoint = models.published("glm4_moe", "bfloat16", num_hidden_layers=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLMC_TIMING", "1")
        out = tmp_path_factory.mktemp("out") / "x.glmc"
        return config, model, glmc.compile(checkpoint, out, target=gpu.name_of(0), max_len=64, max_batch=2)


def test_the_ledger_is_measured(compiled):
    _, _, artifact = compiled
    ledger = artifact.json("ledger.json")
    rows = {row["fusion"]: row for row in ledger["ledger"]}
    timed = [row for row in rows.values() if row["timings"]]
    assert {"rms_norm", "split_qkv_norm_rope", "attention", "moe_experts", "moe_route"} <= {row["fusion"] for row in timed}
    assert any(row["measured_us"] is not None for row in timed)
    for row in timed:
        assert row["basis"] == "measured"
        for site in row["timings"]:
            for bucket in site["buckets"]:
                told = row["fusion"], bucket
                assert bucket["ours_us"] > 0, told
                assert bucket["plain_us"] > 0, told
                assert bucket["inductor_us"] or bucket["reasons"]["inductor"], told
                if site["taken"] and bucket["bucket"].startswith("decode"):
                    rival = min(u for u in (bucket["plain_us"], bucket["smaller_us"]) if u is not None)
                    noise = max(NOISE * rival, sum(bucket["spread_us"].values()))
                    assert bucket["ours_us"] <= rival + noise, told
    assert not [note for note in ledger["notes"] if "predicted" in note]


def test_its_memory_is_given_back(compiled):
    assert torch.cuda.memory_reserved() <= 1 << 28


def test_it_starts_what_it_holds(compiled, recwarn):
    config, model, artifact = compiled
    session = glmc.load(artifact.folder)
    (ids,) = models.prompts(config["vocab_size"], 12)
    off = session.logits(torch.tensor([ids]))[0].cpu() - models.logits(model, ids).float()
    assert float(off.abs().max()) <= 0.25
    assert session.generate(ids, max_new_tokens=8).token_ids
    assert not [w for w in recwarn if "compiled now" in str(w.message)]


def test_the_clock_sees_what_is_twice_the_work():
    clock = GpuClock(torch.device("cuda", 0))
    x = torch.randn(1 << 26, device="cuda")
    once, twice = clock(torch.sin, [x]), clock(lambda t: torch.sin(torch.sin(t)), [x])
    assert 1.7 <= twice.us / once.us <= 2.3
    assert once.us > 2 * x.numel() * 4 / 8e12 * 1e6, "faster than any memory"


def test_a_call_that_cannot_be_recorded_is_a_fault_and_the_next_is_timed():
    clock = GpuClock(torch.device("cuda", 0))
    x = torch.randn(1024, device="cuda")
    with pytest.raises(RuntimeError):
        clock(lambda t: t.sum().item(), [x])
    clock.recover()
    assert clock(torch.sin, [x]).us > 0


def test_a_tower_is_timed_at_images(tmp_path, monkeypatch):
    monkeypatch.setenv("GLMC_TIMING", "1")
    config = models.tiny_config("glm4v")
    config = {**config, "vision_config": {**config["vision_config"], "depth": 1},
              "text_config": {**config["text_config"], "num_hidden_layers": 1}}
    config["torch_dtype"] = "bfloat16"
    checkpoint = models.save(models.randomised(config, torch.bfloat16), config, tmp_path / "from")
    ledger = glmc.compile(checkpoint, tmp_path / "x.glmc", target=gpu.name_of(0), max_len=64).json("ledger.json")
    images = [b for row in ledger["ledger"] for site in row["timings"] for b in site["buckets"]
              if b["bucket"] == "image, 256 patches"]
    assert images
    assert all(b["ours_us"] > 0 and b["plain_us"] > 0 for b in images), images
