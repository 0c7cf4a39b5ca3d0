"""The numeric proof: kernels that are right pass in every form; sites are captured once; what is not judged is told."""

from __future__ import annotations

import json

import pytest
import torch
import traced
from proving import CPU, captured, graph_of

from glmc import gpu, kernels
from glmc.errors import InternalError, NumericError
from glmc.passes import declare, hostile
from glmc.passes.declare import Maths
from glmc.passes.prove import capture, prove
from glmc.passes.rewrite import rewrite


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch):
    """Most tests do with 2,048 rows for 65,536."""
    monkeypatch.setattr(hostile, "_ROWS", 2048)


@pytest.mark.parametrize(("name", "pair", "dtype", "wide"), traced.every(), ids=traced.label)
def test_every_kernel_is_proved_in_every_form(monkeypatch, name, pair, dtype, wide):
    if pair == 0 and dtype is torch.bfloat16:
        monkeypatch.undo()
    (one,) = captured(name, pair, dtype, wide)
    (proof,) = prove([one], CPU)
    assert proof.kernel_error <= 2 * proof.reference_error + torch.finfo(dtype).eps < 0.05
    assert list(proof.shapes) == list(one.shapes)
    assert "s0" in proof.shapes[next(iter(proof.shapes))]
    least = 11 if name in ("moe_experts", "lightning_indexer") else 30_000 if hostile._ROWS == 65_536 else 1024
    assert proof.rows >= least
    assert proof.note is None
    told = json.loads(json.dumps(proof.to_json()))
    assert told["fusion"] == name
    assert set(told["scalars"]) == set(declare.load(name).maths.scalars)


@pytest.mark.parametrize("name", declare.names())
def test_a_site_of_fixed_sizes_is_proved_at_them(name):
    (proof,) = prove(captured(name, moving=False), CPU)
    assert 0 < proof.rows < 400
    assert not any("s0" in told for told in proof.shapes.values())


def test_equal_sites_are_proved_once_and_counted():
    many = [*captured("rms_norm"), *captured("silu_mul"), *captured("rms_norm"), *captured("rms_norm", moving=False)]
    assert sorted((p.fusion, p.places) for p in prove(many, CPU)) == [("rms_norm", 1), ("rms_norm", 2), ("silu_mul", 1)]


def test_equal_sites_of_one_graph_are_captured_once():
    norm = declare.load("rms_norm")

    def twice(x, weight, other):
        return norm.reference(norm.reference(x, weight, eps=0.5), other, eps=0.5)

    tensors = [torch.empty(3, 7, 16, device="meta"), *(torch.empty(16, device="meta") for _ in range(2))]
    (one,) = capture(traced.find(norm, traced.graph_of(twice, tensors, {})).sites)
    assert len(one.places) == 2
    assert prove([one], CPU)[0].places == 2


def test_what_is_captured_outlives_the_rewrite():
    fusion = declare.load("split_qkv_norm_rope")
    graph = graph_of(traced.unseen(fusion, 2, 1), torch.float32)
    sites = traced.find(fusion, graph).sites
    steps = [n.target for n in graph.nodes if n in sites[0].nodes]
    (one,) = capture(sites)
    rewrite(graph, sites)
    assert [n.target for n in one.graph.nodes if n.op == "call_function"] == steps
    assert prove([one], CPU)[0].reference_error > 0


def test_the_steps_are_those_of_the_model_and_not_the_reference_again(monkeypatch):
    (one,) = captured("silu_mul")
    step = next(n for n in one.graph.nodes if n.target is torch.ops.aten.silu.default)
    step.target = torch.ops.aten.relu.default
    module = kernels.load("silu_mul", "cpu")
    monkeypatch.setattr(module, "run", lambda gate, up: torch.relu(gate) * up)  # the model's equal, so not the reference's
    with pytest.raises(NumericError, match="the steps that silu_mul replaces"):
        prove([one], CPU)


def test_many_rows_that_see_each_other_are_held_against_all_of_them():
    fusion = declare.load("attention")
    free = {2: torch.export.Dim.DYNAMIC}
    shapes = [(1, 4, 7, 8)] * 3
    graph = traced.graph_of(lambda q, k, v: fusion.reference(q, k, v, None, scale=0.25),
                            [torch.empty(s, device="meta") for s in shapes], {}, [free] * 3)
    (proof,) = prove(capture(traced.find(fusion, graph).sites), CPU)
    assert proof.shapes["query"] == proof.shapes["key"] == "float32 [1, 4, s0, 8]"
    assert proof.rows == 2048
    assert proof.reference_error < 2e-5
    assert proof.note is None


def test_one_tensor_in_two_parts_stays_one():
    fusion = declare.load("add_rms_norm")
    graph = traced.graph_of(lambda x, w: fusion.reference(x, x, w, eps=0.5),
                            [torch.empty(5, 16, device="meta"), torch.empty(16, device="meta")], {})
    (one,) = capture(traced.find(fusion, graph).sites)
    assert one.twins == {"x": "residual"}
    assert prove([one], CPU)[0].fusion == "add_rms_norm"


def test_a_step_that_reads_what_is_not_the_sites_is_our_bug():
    fusion = declare.load("silu_mul")
    graph = graph_of(traced.unseen(fusion, 0, 1), torch.float32)
    (site,) = traced.find(fusion, graph).sites
    broken = type(site)(site.fusion, site.place, {"gate": site.tensors["gate"]}, {}, site.nodes, site.outputs)
    with pytest.raises(InternalError, match="not the site's"):
        capture([broken])


def big(name, **sizes):
    fusion = declare.load(name)
    maths = Maths(fusion.reference, ({**fusion.samples[0], **sizes},))
    return capture(traced.find(fusion, graph_of(maths, torch.bfloat16)).sites)


def test_experts_too_large_to_draw_are_replayed_smaller_and_it_is_said():
    (proof,) = prove(big("moe_experts", T=5, H=5120, E=160, K=8, I=1536, J=3072), CPU)
    assert proof.note == ("replayed by the reference's own steps at smaller sizes: "
                          "H 5120 -> 320, E 160 -> 16, J 3072 -> 192, I 1536 -> 96")
    assert proof.shapes["gate_up"] == "bfloat16 [160, 3072, 5120]"
    assert 0 < proof.kernel_error < 0.03


def test_sizes_without_a_common_divisor_are_refused():
    with pytest.raises(NumericError, match="no common divisor"):
        prove(big("moe_experts", T=5, H=5119, E=160, K=8, I=1536, J=3072), CPU)


def test_what_cannot_be_smaller_is_refused_by_name():
    with pytest.raises(NumericError, match=r"too large to replay(.|\n)*rms_norm x"):
        prove(big("rms_norm", H=1 << 27), CPU)


def test_what_the_steps_themselves_cannot_is_not_judged_and_told():
    (one,) = captured("silu_mul")
    (result,) = one.graph.output_node().args[0]
    with one.graph.inserting_after(result):
        clamped = one.graph.call_function(torch.ops.aten.clamp.default, (result, -1e5, 1e5))
    one.graph.output_node().args = ((clamped,),)
    (proof,) = prove([one], CPU)
    assert "not judged" in proof.note
    assert "huge entry" in proof.note
    assert proof.reference_error < 1e-6


def test_a_kernel_must_be_finite_even_where_the_steps_are_off(monkeypatch):
    (one,) = captured("silu_mul")
    (result,) = one.graph.output_node().args[0]
    with one.graph.inserting_after(result):
        clamped = one.graph.call_function(torch.ops.aten.clamp.default, (result, -1e5, 1e5))
    one.graph.output_node().args = ((clamped,),)
    module = kernels.load("silu_mul", "cpu")
    right = module.run
    monkeypatch.setattr(module, "run", lambda gate, up: right(gate, up) + (0 if gate.abs().max() < 1e6 else float("nan")))
    with pytest.raises(NumericError, match=r"the kernel of silu_mul(.|\n)*huge entry"):
        prove([one], CPU)


def test_where_the_gpu_is_here_kernels_are_proved_on_it(monkeypatch):
    """With the CPU in its place: what a kernel writes into a cache must come back, or the proof would fail."""
    pair = next(i for i, s in enumerate(declare.load("split_qkv_norm_rope").samples) if s.get("keys", 1) is not None)
    many = [*captured("split_qkv_norm_rope", pair), *captured("attention")]
    before = prove(many, CPU)
    monkeypatch.setattr(gpu, "here", lambda target: torch.device("cpu"))
    monkeypatch.setattr(gpu, "model_of", lambda device: "a GPU")
    for one, other in zip(prove(many, CPU), before, strict=True):
        assert one.note == "on a GPU"
        assert (one.kernel_error, one.rows) == (other.kernel_error, other.rows)


def test_a_kernel_whose_writes_are_lost_on_the_way_is_refused(monkeypatch):
    pair = next(i for i, s in enumerate(declare.load("split_qkv_norm_rope").samples) if s.get("keys", 1) is not None)
    run = kernels.load("split_qkv_norm_rope", "cpu").run
    monkeypatch.setattr(kernels.load("split_qkv_norm_rope", "cpu"), "run",
                        lambda *tensors, **scalars: run(*(t if t is None else t.clone() for t in tensors), **scalars))
    monkeypatch.setattr(gpu, "here", lambda target: torch.device("cpu"))
    monkeypatch.setattr(gpu, "model_of", lambda device: "a GPU")
    with pytest.raises(NumericError, match="is not the equal"):
        prove(captured("split_qkv_norm_rope", pair), CPU)
