"""Inputs of the numeric proof: what each tensor stands for is respected, and what may break a kernel is there."""

from __future__ import annotations

import pytest
import torch
from proving import captured

from glmc.passes import declare, hostile


def drawn(name, pair, case, dtype=torch.float32):
    (one,) = captured(name, pair, dtype)
    values = hostile.assign(one.shapes, one.outputs, case.sizes)
    values = hostile.assign(one.shapes, one.outputs, "odd") if values is None else values
    return hostile.inputs(declare.load(name).maths, one.shapes, values, case, one.scalars)


@pytest.mark.parametrize("case", hostile.CASES, ids=str)
def test_no_two_tokens_share_a_slot(case):
    given = drawn("split_qkv_norm_rope", 0, case)
    for row in given["slots"].tolist():
        assert len(set(row)) == len(row)
        assert 0 <= min(row) <= max(row) < given["keys"].shape[1]


def test_every_query_sees_something_and_not_everything():
    given = drawn("attention", 0, hostile.Case())
    assert bool(given["visible"].any(-1).all())
    assert not bool(given["visible"].all())


@pytest.mark.parametrize("case", hostile.CASES, ids=str)
def test_no_choice_of_experts_hangs_on_a_rounding_step(case):
    given = drawn("moe_route", 0, case)
    (one,) = captured("moe_route")
    scalars = {k: one.scalars[k] for k in ("groups", "kept", "top")}
    assert float(hostile.margin(given["logits"], given["bias"], **scalars).min()) > 1e-5


def test_far_positions_differ_by_axis():
    given = drawn("rope_table", 2, hostile.Case(sizes="many rows"))
    rows = given["positions"]
    assert rows.shape[0] == 3
    assert int(rows.max()) > 990_000
    assert not torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[1], rows[2])


def test_the_same_case_is_drawn_the_same_again():
    for name in ("rope", "moe_route"):
        first, second = (drawn(name, 0, hostile.Case()) for _ in range(2))
        assert all(torch.equal(first[k], second[k]) for k in first)


def test_many_rows_are_65536_where_heads_are_small():
    (one,) = captured("qk_norm_rope")
    values = hostile.assign(one.shapes, one.outputs, "many rows")
    heads = one.shapes["x"][1][-2]
    rows = hostile.concrete(one.outputs[0][:-1], values)
    assert 65_536 - heads < torch.Size(rows).numel() <= 65_536


@pytest.mark.parametrize("special", ["zeros", "huge entry", "denormals"])
def test_special_values_are_there(special):
    x = drawn("rms_norm", 0, hostile.Case(special=special))["x"]
    tiny = torch.finfo(x.dtype).smallest_normal
    assert {"zeros": bool((x == 0).all()), "huge entry": int((x.abs() > 2.0 ** 39).sum()) == 1,
            "denormals": bool(((x != 0) & (x.abs() < tiny)).float().mean() > 0.9)}[special]
