"""One rank's program: what is cut and where ranks add up, what works out not, and the proof that finds a wrong cut."""

from __future__ import annotations

import dataclasses
import functools
import json

import pytest
import torch

from glmc.errors import NumericError
from glmc.passes.place import Plan, place
from glmc.passes.prove_placement import prove_placement
from glmc.placement import Cut, Placement, read_placement
from glmc.program import Program, Region, Step

PLAN = {"layers.*.attn.q_proj": "colwise", "layers.*.attn.k_proj": "colwise", "layers.*.attn.v_proj": "colwise",
        "layers.*.attn.o_proj": "rowwise", "layers.*.mlp.gate_up_proj": "colwise_gather_output",
        "layers.*.mlp.down_proj": "rowwise_split_input", "lm_head": "colwise_gather_output"}
JOINED = {"model.layers.0.attn.qkv.weight": tuple((f"model.layers.0.attn.{n}_proj.weight", rows)
                                                  for n, rows in (("q", 32), ("k", 16), ("v", 16)))}
LAYER = """def layer_0(
    x: "value float32 [B, S, 12]",
    norm: "weight float32 [12]",
    qkv: "weight float32 [64, 12]",
    cos: "value float32 [B, S, 4]",
    sin: "value float32 [B, S, 4]",
    keys: "cache float32 [B, L, 2, 8]",
    positions: "value int64 [B, S]",
    values: "cache float32 [B, L, 2, 8]",
    mask: "value bool [B, 1, S, L]",
    o: "weight float32 [12, 32]",
    norm_1: "weight float32 [12]",
    gate_up: "weight float32 [40, 12]",
    down: "weight float32 [12, 20]",
) -> "float32 [B, S, 12]":
    normed = glmc.rms_norm(x, norm, eps=1e-05)
    linear = aten.linear.default(normed, qkv)
    split = glmc.split_qkv_norm_rope(linear, cos, sin, heads=4, kv_heads=2, eps=None, read=-2, write=-2, axis_map=None)
    v = operator.getitem(split, 2)
    k = operator.getitem(split, 1)
    q = operator.getitem(split, 0)
    turned = aten.transpose.int(q, -3, -2)
    size_B = aten.sym_size.int(x, 0)
    arange = aten.arange.default(size_B)
    rows = aten.unsqueeze.default(arange, -1)
    put = aten.index_put_.default(keys, [rows, positions], k)
    all_keys = aten.transpose.int(put, -3, -2)
    put_1 = aten.index_put_.default(values, [rows, positions], v)
    all_values = aten.transpose.int(put_1, -3, -2)
    attention = glmc.attention(turned, all_keys, all_values, mask, scale=0.25)
    back = aten.transpose.int(attention, -3, -2)
    flat = aten.flatten.using_ints(back, -2, -1)
    out = aten.linear.default(flat, o)
    pair = glmc.add_rms_norm(x, out, norm_1, eps=1e-05)
    total = operator.getitem(pair, 1)
    ready = operator.getitem(pair, 0)
    both = aten.linear.default(ready, gate_up)
    gate = aten.slice.Tensor(both, -1, 0, 20, 1)
    up = aten.slice.Tensor(both, -1, 20, 9223372036854775807, 1)
    gated = glmc.silu_mul(gate, up)
    last = aten.linear.default(gated, down)
    add = aten.add.Tensor(total, last)
    return (add,)
"""
HEAD = """def head_0(
    x: "value float32 [B, S, 12]",
    lm_head: "weight float32 [{rows}, 12]",
) -> "float32 [B, S, {rows}]":
    linear = aten.linear.default(x, lm_head)
    return (linear,)
"""
WEIGHTS = {"norm": "norm.weight", "qkv": "attn.qkv.weight", "o": "attn.o_proj.weight", "norm_1": "norm_1.weight",
           "gate_up": "mlp.gate_up_proj.weight", "down": "mlp.down_proj.weight"}


def program(layer=LAYER, rows=24):
    """One layer and a head of so many rows."""
    regions = [Region.parse(layer), Region.parse(HEAD.format(rows=rows))]
    names = {"x": "input:x", **{name: f"weight:model.layers.0.{path}" for name, path in WEIGHTS.items()}}
    inputs = tuple(names.get(name, f"cache:{name}.0" if role == "cache" else f"input:{name}")
                   for name, role, _ in regions[0].inputs)
    steps = (Step("layer_0", inputs, ("value:0",)), Step("head_0", ("value:0", "weight:lm_head.weight"), ("value:1",), "last"))
    return Program({region.name: region for region in regions}, steps, "value:1")


def placed(layer=LAYER, rows=24, plan=PLAN, joined=JOINED):
    found = program(layer, rows)
    return found, *place(found, Plan(plan, joined))


def test_a_layer_becomes_pieces_with_sums_between():
    whole, found, notes = placed()
    assert notes[:-1] == []
    assert "5 of 7 weights are cut" in notes[-1]
    assert [step.region.split("_")[0] for step in found.program.steps] == [
        "layer", "all", "layer", "all", "layer", "head", "all"]
    assert [(s.region, dict(s.fixed)) for s in found.program.steps if s.moves] == [
        ("all_reduce", {}), ("all_reduce", {}), ("all_gather", {"dim": -1})]
    assert found.cuts == {
        "model.layers.0.attn.qkv.weight": Cut(-2, (32, 16, 16)), "model.layers.0.attn.o_proj.weight": Cut(-1, (32,)),
        "model.layers.0.mlp.gate_up_proj.weight": Cut(-2, (20, 20)), "model.layers.0.mlp.down_proj.weight": Cut(-1, (20,)),
        "lm_head.weight": Cut(-2, (24,))}
    assert found.degrees() == (2,)
    one = found.program.at(2)
    first, second, third, head = [one.regions[s.region].text() for s in one.steps if not s.moves]
    assert 'keys: "cache float32 [B, L, 1, 8]"' in first
    assert "heads=2, kv_heads=1" in first
    assert "aten.slice.Tensor(both, -1, 0, 10, 1)" in second
    assert "//" not in first + second + third + head
    assert {proof.pieces for proof in prove_placement(whole, found, 2)} == {1, 3}


def test_a_cache_that_the_split_itself_writes():
    changes = (("(linear, cos, sin, heads", "(linear, cos, sin, None, None, None, None, keys, values, positions, heads"),
               ("aten.index_put_.default(keys, [rows, positions], k)", "aten.contiguous.default(k)"),
               ("aten.index_put_.default(values, [rows, positions], v)", "aten.contiguous.default(v)"))
    written = functools.reduce(lambda text, change: text.replace(*change), changes, LAYER)
    whole, found, notes = placed(written)
    assert "5 of 7 weights are cut" in notes[0]
    assert 'keys: "cache float32 [B, L, 1, 8]"' in found.program.at(2).regions[found.program.steps[0].region].text()
    assert max(proof.error for proof in prove_placement(whole, found, 2)) < 1e-5


def test_it_is_written_and_read_back():
    _, found, _ = placed()
    texts = {name: region.text() for name, region in found.program.regions.items()}
    found = dataclasses.replace(found, ranks=found.degrees())
    again = read_placement({"parallel": json.loads(json.dumps(found.to_json()))}, texts.__getitem__)
    assert (again, again.ranks) == (found, (2,))
    assert read_placement({}, texts.__getitem__) is None


@pytest.mark.parametrize("wrong", [{"model.layers.0.attn.qkv.weight": Cut(-2, (64,))},
                                   {"model.layers.0.mlp.gate_up_proj.weight": Cut(-2, (40,))}])
def test_the_proof_finds_a_wrong_cut(wrong):
    whole, found, _ = placed()
    with pytest.raises(NumericError, match="pieces of a region"):
        prove_placement(whole, Placement(found.program, {**found.cuts, **wrong}), 2)


def test_the_proof_finds_a_sum_that_is_missing():
    whole, found, _ = placed()
    step = next(step for step in found.program.steps if step.moves)
    lost = tuple(s for s in found.program.steps if s is not step)
    renamed = tuple(dataclasses.replace(s, inputs=tuple(step.inputs[0] if n == step.outputs[0] else n for n in s.inputs))
                    for s in lost)
    with pytest.raises(NumericError, match="pieces of a region"):
        prove_placement(whole, Placement(dataclasses.replace(found.program, steps=renamed), found.cuts), 2)


@pytest.mark.parametrize(("change", "joined", "said"), [
    (("", ""), {"model.layers.0.attn.qkv.weight": (("model.layers.0.attn.q_proj.weight", 64),)}, "not cut each by itself"),
    (("aten.linear.default(flat, o)", "aten.linear.default(flat, o, norm)"), JOINED, "or with a bias"),
    (("aten.flatten.using_ints(back, -2, -1)", "aten.softmax.int(back, -2)"), JOINED, "no rule says"),
    (("flat = aten.flatten.using_ints(back, -2, -1)", "flatter = aten.flatten.using_ints(back, -2, -1)\n"
      "    flat = glmc.layer_norm(flatter, None, None, eps=1e-05)"), JOINED, "a norm over channels that are cut"),
], ids=["one block", "bias", "no rule", "norm"])
def test_what_does_not_work_out_is_whole_on_every_rank_and_told(change, joined, said):
    _, found, notes = placed(LAYER.replace(*change) if change[0] else LAYER, rows=40, joined=joined)
    assert any(said in note for note in notes)
    assert {name.split(".")[-2] for name in found.cuts} == {"gate_up_proj", "down_proj", "lm_head"}
    layer = next(region for region in found.program.regions.values() if "keys" in region.text())
    assert "[B, L, 2, 8]" in layer.text()


def test_a_head_that_few_numbers_divide_is_whole():
    _, found, notes = placed(rows=23)
    assert "lm_head.weight" not in found.cuts
    assert any("the head is whole on every rank" in note for note in notes)
    assert not any(step.region == "all_gather" for step in found.program.steps)


def test_logits_whose_parts_do_not_follow_one_another_are_whole():
    _, found, notes = placed(plan={**PLAN, "lm_head": "packed_colwise"})
    assert "lm_head.weight" not in found.cuts
    assert any("parts that do not follow one another" in note for note in notes)


def test_sizes_that_nothing_divides_are_told():
    _, found, notes = placed(LAYER.replace("20", "19").replace("[40,", "[38,"))
    assert found is None
    assert "no number of them divides" in notes[-1]


def test_a_plan_that_cuts_nothing_is_told():
    _, found, notes = placed(plan={"layers.*.attn.q_proj": "mla_kv_a_proj"})
    assert found is None
    assert "cuts nothing" in notes[-1]


def test_shares_of_a_cut_are_its_parts_pieces():
    cut = Cut(-2, (4, 2, 2))
    whole = torch.arange(8).unsqueeze(1).expand(8, 3)
    assert cut.share(whole, 1, 2)[:, 0].tolist() == [2, 3, 5, 7]
    assert cut.of((8, 3), 2) == (4, 3)
