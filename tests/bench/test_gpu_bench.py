"""The GPU benchmarks as far as they run without one: bounds, sizes, who is beside us, and a whole run with stand-ins."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import models
import pytest
import torch

import glmc
from glmc.kernels import triton as language
from glmc.native.keep import Keep

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(autouse=True)
def beside(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))


def test_the_experts_that_a_batch_is_expected_to_touch():
    from gpu_bound import distinct

    assert distinct(128, 8, 1) == pytest.approx(8)
    assert [distinct(16, 4, rows) for rows in range(1, 9)] == sorted(distinct(16, 4, rows) for rows in range(1, 9))
    assert distinct(128, 8, 4096) == pytest.approx(128)
    drawn = torch.rand(2000, 5, 16, generator=torch.Generator().manual_seed(0)).topk(4).indices.flatten(1)
    assert distinct(16, 4, 5) == pytest.approx(sum(len(set(row)) for row in drawn.tolist()) / 2000, rel=0.02)


@pytest.mark.parametrize("family", ["glm4", "glm4_moe"])
def test_a_step_reads_what_the_plan_says(family, tmp_path):
    import gpu_bound

    config = models.tiny_config(family, torch_dtype="bfloat16", tie_word_embeddings=False)
    (tmp_path / "config.json").write_text(json.dumps(config))
    plan = glmc.plan(tmp_path / "config.json", target="cuda:sm_90")
    assert gpu_bound.step(config, 1, 0) == pytest.approx(plan.roofline["bytes_per_token"], rel=0.01)
    assert gpu_bound.cached(config) == plan.memory["kv_bytes_per_token"]
    more = gpu_bound.step(config, 3, 7) - gpu_bound.step(config, 3, 0)
    assert more == pytest.approx(21 * gpu_bound.cached(config))


def test_coded_experts_count_as_they_are_kept():
    import gpu_bound

    config = models.tiny_config("glm4_moe", torch_dtype="bfloat16", hidden_size=64, moe_intermediate_size=32)
    plain, coded = gpu_bound.weights(config), gpu_bound.weights(config, "mxfp4")
    experts, layers = config["n_routed_experts"], config["num_hidden_layers"] - config["first_k_dense_replace"]
    kept = sum(Keep("MX4", sizes, "bfloat16", gpu=True).stored()[1][-1] * sizes[0] * sizes[1]
               for sizes in ((experts, 64, 64), (experts, 64, 32)))
    assert (coded.rest, coded.embedding) == (plain.rest, plain.embedding)
    assert coded.routed == layers * kept < plain.routed == layers * experts * 2 * 64 * 96


def test_so_many_layers_as_fit():
    from gpu_bound import fitting, weights

    config = json.loads((BENCH / "configs" / "glm-4.5-air.json").read_text())
    whole = weights(config, "mxfp4")
    assert 60e9 < whole.total < 75e9
    assert fitting(config, "mxfp4", 1e12, 1e12, 0) == config["num_hidden_layers"]
    some = fitting(config, "mxfp4", 1e12, 40e9, 1000)
    assert 20 < some < config["num_hidden_layers"]
    assert weights(config | {"num_hidden_layers": some}, "mxfp4").total <= 36e9
    assert fitting(config, "mxfp4", 60e9, 1e12, 0) < 40
    assert fitting(config, "mxfp4", 0, 0, 0) == 1


def cases():
    import gpu_cases

    groups = [gpu_cases.norms(3), gpu_cases.turns(3), gpu_cases.splits(2), gpu_cases.splits(65),
              gpu_cases.attentions(((1, 4, 2, 1, 70), (2, 4, 2, 3, 33))), gpu_cases.latents((90,), (2,)),
              gpu_cases.indexers(((1, 1, 70), (2, 3, 70)), 40), gpu_cases.experts((1, 20), (8, 2, 64, 32))]
    return [case for group in groups for case in group]


@pytest.fixture
def on_cpu(monkeypatch):
    import gpu_cases

    monkeypatch.setattr(gpu_cases, "DEVICE", "cpu")
    monkeypatch.setitem(gpu_cases.LATENT, "GLM-5", (4, 33))
    monkeypatch.setitem(gpu_cases.LATENT, "GLM-4.7-Flash", (4, None))


def test_each_case_is_what_the_steps_take_and_moves_what_it_says(on_cpu):
    import gpu_cases

    assert {case.fusion for case in cases()} >= {"rms_norm", "layer_norm", "modulated_norm", "latent_attention", "moe_experts"}
    for case in cases():
        torch.manual_seed(0)
        given = case.given()
        copies = [t.clone() if isinstance(t, torch.Tensor) else t for t in given]
        results = case.steps(*copies)
        old = {t.data_ptr() for t in copies if t is not None}  # a cache is written in place
        made = sum(t.numel() * t.element_size() for t in (results if isinstance(results, tuple) else (results,))
                   if t.data_ptr() not in old)
        assert 0 < made <= case.moved, case.name
        if case.fusion == "moe_experts":
            with language.interpreted():
                mine = case.run(*given)
            assert float((mine.float() - results.float()).abs().max()) <= 0.02 * float(results.float().abs().max()), case.name
        read = sum(t.numel() * t.element_size() for t in given if t is not None)
        assert case.moved <= made + read + (1 << 12), (case.name, case.moved, made, read)
    assert gpu_cases.MOVING.keys() | gpu_cases.OTHERS.keys() == {"norms", "turns", "splits", "attention", "latent", "indexer",
                                                                 "experts"}


def test_liger_is_asked_where_it_has_the_same_maths(on_cpu):
    pytest.importorskip("liger_kernel")
    import gpu_cases

    found = {case.name.partition(" ")[0] for case in cases() if gpu_cases.liger(case) is not None}
    assert found == {"rms_norm", "add_rms_norm", "layer_norm", "silu_mul", "rope"}


def clock(calls):
    for call in calls[:1]:
        call()
    return [2.0, 3.0, 4.0]


def test_kernels_are_timed_and_what_fails_is_told(on_cpu, monkeypatch, tmp_path):
    import gpu_cases
    import gpu_kernels
    from report import Report

    monkeypatch.setattr(gpu_kernels, "microseconds", clock)
    report, details = Report("gpu_kernels", tmp_path / "x.json"), {"cases": {}}
    case = gpu_cases.Case("silu_mul 6", "silu_mul", lambda: list(gpu_cases.rand(2, 12).chunk(2, -1)), {}, 72)

    def broken(*tensors):
        raise torch.OutOfMemoryError("no room")

    with language.interpreted():
        gpu_kernels.compared(report, details, case, "a", {"torch": case.steps, "Liger": broken}, 1e9, {"a copy": 0.85})
        gpu_kernels.compared(report, details, gpu_cases.Case("b", "silu_mul", broken, {}, 1), "b", {}, 1e9, {"a copy": 0.85})
    assert {f["figure"]: f["value"] for f in report.figures} == {"a": 0.024, "a, over torch": 1.0, "b: failed": 1}
    assert details["cases"]["a"]["Liger"] == {"failed": "OutOfMemoryError: no room"}
    assert details["cases"]["b"]["failed"] == "OutOfMemoryError: no room"


def test_the_barred_cases_come_first(on_cpu, monkeypatch):
    import gpu_kernels

    titles = [title for title, *_ in gpu_kernels.plan([2], [1], {"inductor", "norms", "splits"}, with_liger=False)]
    assert titles[0] == "split_qkv_norm_rope GLM-4-9B, 1 tokens"
    assert len(titles) == len(set(titles)) == 3 + 9 + 3


@pytest.fixture
def stand_ins(monkeypatch):
    """What only a GPU has: the artefact is of engine `fx` on the CPU, torch.compile changes nothing."""
    import checkpoints
    import gpu_clock
    import gpu_contenders
    import gpu_decode

    monkeypatch.setattr(gpu_clock, "copy_bandwidth", lambda: {"torch": 4e12})
    monkeypatch.setattr(gpu_clock, "device", lambda: {"gpu": "none"})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 << 40, 1 << 40))
    monkeypatch.setattr(gpu_decode, "write", lambda folder, config, device: checkpoints.write(folder, config))
    real = glmc.compile
    monkeypatch.setattr(glmc, "compile", lambda *paths, target, weights, **rest: real(*paths, target="fx", **rest))
    phases = {"load": 2.0, "first_token": 0.5, "weights_and_code": 1.5, "compiled": []}
    monkeypatch.setattr(gpu_decode, "opening", lambda artifact: phases)
    monkeypatch.setattr(gpu_contenders, "random_model", functools.partial(gpu_contenders.random_model, device="cpu"))
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(gpu_contenders, "published_model", lambda folder: AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16).eval())
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    return gpu_decode


TINY = {"glm4": {"vocab_size": 512}, "glm4_moe": {"vocab_size": 512, "hidden_size": 64, "moe_intermediate_size": 32}}


@pytest.mark.parametrize(("family", "kind", "layers"), [("glm4", "bfloat16", None), ("glm4_moe", "mxfp4", "fit")])
def test_a_decode_benchmark_from_its_config_to_its_figures(stand_ins, monkeypatch, tmp_path, family, kind, layers):
    config = models.tiny_config(family, torch_dtype="bfloat16", pad_token_id=0, **TINY[family])
    (tmp_path / "c.json").write_text(json.dumps(config))
    words = ["--config", tmp_path / "c.json", "--kind", kind, "--rows", "1,2", "--prompt", 4, "--steps", 3, "--rounds", 1,
             "--scratch", tmp_path / "scratch", "--out", tmp_path / "out.json", *(["--layers", layers] if layers else [])]
    monkeypatch.setattr(sys, "argv", ["gpu_decode.py", *map(str, words)])
    stand_ins.main()
    result = json.loads((tmp_path / "out.json").read_text())
    figures = {f["figure"]: f["value"] for f in result["figures"]}
    assert figures["layers"] == config["num_hidden_layers"]
    assert figures["load and first token beyond reading the weights"] == 1.0
    peer = "" if kind == "bfloat16" else " in bfloat16"
    for rows in (1, 2):
        assert figures[f"decode, {rows} rows"] > 0
        told = result["details"]["decode"][str(rows)]
        assert {name: one.get("failed") for name, one in told["peers"].items()} == {"eager": None, "compiled": None}
        assert figures[f"decode, {rows} rows, over eager{peer}"] > 0
        assert told["bound"] == pytest.approx(rows * 4e12 / told["bytes_a_step"], rel=1e-3)
        if kind == "bfloat16":
            assert told["peers"]["eager"]["tokens_equal_to_glmc"] >= 3, "but for a tie that rounding decides"
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--prepare"])
    (tmp_path / "out.json").unlink()
    stand_ins.main()
    assert not (tmp_path / "out.json").exists(), "only what was lacking is made, and nothing was"


def test_a_vision_tower_beside_transformers(stand_ins, monkeypatch, tmp_path):
    import gpu_vision

    config = models.tiny_config("glm4v", torch_dtype="bfloat16")
    config = {**config, "text_config": {**config["text_config"], "num_hidden_layers": 1}}
    monkeypatch.setattr(gpu_vision, "config_of", lambda name, blocks: {**config, "vision_config": {
        **config["vision_config"], "depth": blocks}})
    monkeypatch.setattr(gpu_vision, "made", functools.partial(gpu_vision.made, device="cpu"))
    words = ["--blocks", "1", "--grids", "4x6", "--models", "GLM-4.1V", "--rounds", "1", "--out", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", ["gpu_vision.py", *words])
    gpu_vision.main()
    result = json.loads((tmp_path / "out.json").read_text())
    assert {f["figure"].partition(": ")[2] for f in result["figures"]} == {
        "glmc", "over transformers eager", "over transformers sdpa"}
    assert result["details"]["GLM-4.1V"]["4x6"]["apart"] < 0.05


def test_products_and_what_follows_them_are_the_same_three_ways(on_cpu):
    import gpu_followed

    for outputs, inputs, count in ((96, 64, 0), (48, 64, 2)):
        for rows in (1, 3):
            torch.manual_seed(rows)
            with language.interpreted():
                one, each, steps = (calls[0]().float() for calls in gpu_followed.ways(outputs, inputs, count, rows).values())
            assert one.shape == (rows, outputs if count else outputs // 2)
            for other in (each, steps):
                assert float((one - other).abs().max()) <= 0.02 * float(one.abs().max())
