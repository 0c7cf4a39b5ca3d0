"""Products joined with what follows them: only where nothing else sees the difference, and with the same numbers."""

from __future__ import annotations

import json
from collections import Counter

import models
import once
import pytest
import torch

from glmc import epilogue, families
from glmc.kernels import triton
from glmc.kernels.linear import triton as linear
from glmc.passes.lower import Bounds, sample
from glmc.program import Program, Region, Step
from glmc.region import Bound
from glmc.target import named

INPUTS = ('x: "value float32 [B, S, 4]", y: "value float32 [B, S, 6]", z: "value float32 [B, S, 6]", b: "weight float32 [6]", '
          'w: "weight float32 [6, 4]", v: "weight float32 [4, 6]", keys: "cache float32 [B, L, 6]", at: "value int64 [S]"')
PRODUCT = "p = aten.linear.default(x, w)"
HALVES = ("g = aten.slice.Tensor(p, -1, 0, 3, 1)", "u = aten.slice.Tensor(p, -1, 3, 9223372036854775807, 1)")
JOINS = {
    "a sum": ([PRODUCT, "a = aten.add.Tensor(y, p)"], ["a = glmc.linear(x, w, None, [y])"]),
    "a sum, swapped": ([PRODUCT, "a = aten.add.Tensor(p, y)"], ["a = glmc.linear(x, w, None, [y])"]),
    "a bias": (["p = aten.linear.default(x, w, b)", "a = aten.add.Tensor(y, p)"], ["a = glmc.linear(x, w, b, [y])"]),
    "two sums": ([PRODUCT, "c = aten.add.Tensor(y, p)", "a = aten.add.Tensor(z, c)"], ["a = glmc.linear(x, w, None, [y, z])"]),
    "a term that is made later": (
        [PRODUCT, "n = aten.neg.default(y)", "a = aten.add.Tensor(n, p)"],
        ["n = aten.neg.default(y)", "a = glmc.linear(x, w, None, [n])"]),
    "of two products the later": (
        [PRODUCT, "q = aten.linear.default(x, w, b)", "a = aten.add.Tensor(p, q)"],
        [PRODUCT, "a = glmc.linear(x, w, b, [p])"]),
    "gate and up": ([PRODUCT, *HALVES, "a = glmc.silu_mul(g, u)"], ["a = glmc.linear(x, w, None, gated=True)"]),
    "a widened input and matrix": (
        ["t = aten.to.dtype(x, torch.float32)", "t_1 = aten.to.dtype(w, torch.float32)", "a = aten.linear.default(t, t_1)"],
        ["a = glmc.linear(x, w, None, wide=True)"]),
    "a widened input": (["t = aten.to.dtype(x, torch.float32)", "a = aten.linear.default(t, w, b)"],
                        ["a = glmc.linear(x, w, b, wide=True)"]),
    "all at once": (["t = aten.to.dtype(x, torch.float32)", "p = aten.linear.default(t, w)", "a = aten.add.Tensor(y, p)"],
                    ["a = glmc.linear(x, w, None, [y], wide=True)"]),
    "gate and up, widened": (
        ["t = aten.to.dtype(w, torch.float32)", "p = aten.linear.default(x, t)", *HALVES, "a = glmc.silu_mul(g, u)"],
        ["a = glmc.linear(x, w, None, gated=True, wide=True)"]),
    "one after the other": (
        [PRODUCT, *HALVES, "s = glmc.silu_mul(g, u)", "w_1 = aten.slice.Tensor(v, -1, 0, 3, 1)",
         "q = aten.linear.default(s, w_1)", "a = aten.add.Tensor(x, q)"],
        ["s = glmc.linear(x, w, None, gated=True)", "w_1 = aten.slice.Tensor(v, -1, 0, 3, 1)",
         "a = glmc.linear(s, w_1, None, [x])"]),
}
"""What is joined: lines before and after, without the last."""
LEFT = {
    "read twice": ([PRODUCT, "a = aten.add.Tensor(y, p)", "n = aten.neg.default(p)"], "a, n"),
    "added to itself": ([PRODUCT, "a = aten.add.Tensor(p, p)"], "a"),
    "returned": ([PRODUCT, "a = aten.add.Tensor(y, p)"], "a, p"),
    "times another number": ([PRODUCT, "a = aten.add.Tensor(y, p, alpha=2)"], "a"),
    "a number": ([PRODUCT, "a = aten.add.Tensor(p, 2.0)"], "a"),
    "seen through a view": ([PRODUCT, "t = aten.transpose.int(p, 0, 1)", "a = aten.add.Tensor(t, y)"], "a"),
    "a difference": ([PRODUCT, "a = aten.sub.Tensor(y, p)"], "a"),
    "written where it lies": ([PRODUCT, "a = aten.add_.Tensor(p, y)"], "a"),
    "a term is written before": (
        ["k = aten.slice.Tensor(keys, 1, 0, 1, 1)", PRODUCT, "i = aten.index_put_.default(keys, [None, at], y)",
         "a = aten.add.Tensor(k, p)"], "a, i"),
    "an argument is written between": (
        ["k = aten.linear.default(keys, v)", "i = aten.index_put_.default(keys, [None, at], y)", "a = aten.add.Tensor(x, k)"],
        "a, i"),
    "the packed write between": (
        ["k = aten.linear.default(keys, v)", "i = glmc.split_qkv_norm_rope(x, y, z, None, None, None, None, keys, keys, at)",
         "a = aten.add.Tensor(x, k)"], "a"),
    "widened for another too": (["t = aten.to.dtype(x, torch.float32)", "a = aten.linear.default(t, w)"], "a, t"),
    "narrowed": (["t = aten.to.dtype(x, torch.bfloat16)", "a = aten.linear.default(t, w)"], "a"),
    "what is widened is written between": (
        ["t = aten.to.dtype(keys, torch.float32)", "i = aten.index_put_.default(keys, [None, at], y)",
         "a = aten.linear.default(t, v)"], "a, i"),
    "up before gate": ([PRODUCT, *HALVES, "a = glmc.silu_mul(u, g)"], "a"),
    "gate twice": ([PRODUCT, *HALVES, "a = glmc.silu_mul(g, g)"], "a"),
    "a half read twice": ([PRODUCT, *HALVES, "s = glmc.silu_mul(g, u)", "a = aten.add.Tensor(s, u)"], "a"),
    "a half returned": ([PRODUCT, *HALVES, "a = glmc.silu_mul(g, u)"], "a, g"),
    "the product returned": ([PRODUCT, *HALVES, "a = glmc.silu_mul(g, u)"], "a, p"),
    "halves of two products": (
        [PRODUCT, "q = aten.linear.default(x, w, b)", "g = aten.slice.Tensor(p, -1, 0, 3, 1)",
         "u = aten.slice.Tensor(q, -1, 3, 9223372036854775807, 1)", "a = glmc.silu_mul(g, u)"], "a"),
    "no halves": ([PRODUCT, "g = aten.slice.Tensor(p, -1, 0, 2, 1)", "u = aten.slice.Tensor(p, -1, 2, 4, 1)",
                   "a = glmc.silu_mul(g, u)"], "a"),
    "halves of rows": ([PRODUCT, "g = aten.slice.Tensor(p, -2, 0, 3, 1)",
                        "u = aten.slice.Tensor(p, -2, 3, 9223372036854775807, 1)", "a = glmc.silu_mul(g, u)"], "a"),
    "of unknown width": (["w_1 = aten.neg.default(w)", "p = aten.linear.default(x, w_1)", *HALVES, "a = glmc.silu_mul(g, u)"],
                         "a"),
    "of another width": (["p = aten.linear.default(y, v)", *HALVES, "a = glmc.silu_mul(g, u)"], "a"),
}
"""What is left: lines, and what is returned."""


def region(lines, returned="a"):
    body = "".join(f"    {line}\n" for line in (*lines, f"return ({returned},)"))
    return Region.parse(f'def layer_1({INPUTS}) -> "float32 [B, S, 6]":\n{body}')


@pytest.mark.parametrize("case", JOINS)
def test_what_nothing_else_sees_is_joined(case):
    before, after = JOINS[case]
    found = epilogue.joined(region(before))
    assert found == region(after)
    assert epilogue.joined(found) == found


@pytest.mark.parametrize("case", LEFT)
def test_what_something_else_sees_is_left(case):
    lines, returned = LEFT[case]
    assert epilogue.joined(region(lines, returned)) == region(lines, returned)


def test_products_are_counted_by_what_they_do():
    lines = [PRODUCT, *HALVES, "s = glmc.silu_mul(g, u)", "w_1 = aten.slice.Tensor(v, -1, 0, 3, 1)",
             "q = aten.linear.default(s, w_1)", "d = aten.add.Tensor(x, q)", "t = aten.to.dtype(d, torch.float32)",
             "a = aten.linear.default(t, w)"]
    text = region(lines)
    step = Step(text.name, ("input:x",) * len(text.inputs), ("value:1",))
    counts = epilogue.counted(Program({text.name: text}, (step, step), "value:1"))
    assert counts == {"products": 6, "gated": 2, "adding": 2, "widening": 2}


def test_three_sums_are_two_and_one():
    lines = [PRODUCT, "c = aten.add.Tensor(y, p)", "d = aten.add.Tensor(z, c)", "a = aten.add.Tensor(b, d)"]
    assert epilogue.joined(region(lines)) == region(["d = glmc.linear(x, w, None, [y, z])", "a = aten.add.Tensor(b, d)"])
    assert epilogue.TERMS == linear.TERMS == 2


@pytest.mark.parametrize("case", JOINS)
@pytest.mark.parametrize("rows", [1, 3, linear.FEW + 1])
def test_joined_lines_give_what_single_ones_do(case, rows):
    draw = torch.Generator().manual_seed(rows)
    text = region(JOINS[case][0])
    given = [sample(spec, role, {"B": 1, "S": rows, "L": 9}, Bounds(1, 9)) for _, role, spec in text.inputs]
    given = [torch.randn(t.shape, generator=draw) if t.is_floating_point() else torch.arange(len(t)) for t in given]
    with triton.interpreted():
        (one,), (other,) = Bound(text, "triton")(*given), Bound(text, "triton", by_line=True)(*given)
    assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [2, linear.FEW + 1])
def test_a_term_that_is_spread_is_added_as_before(rows):
    text = region([PRODUCT, "a = aten.add.Tensor(b, p)"])
    given = [torch.randn(spec.at({"B": 1, "S": rows, "L": 9})) for _, _, spec in text.inputs]
    with triton.interpreted():
        (one,), (other,) = Bound(text, "triton")(*given), Bound(text, "triton", by_line=True)(*given)
    assert torch.equal(one, other)


def test_lines_are_told_as_they_run():
    text = region([PRODUCT, "n = aten.neg.default(y)", "a = aten.add.Tensor(n, p)"])
    given = [torch.randn(spec.at({"B": 1, "S": 1, "L": 9})) for _, _, spec in text.inputs]
    with triton.interpreted():
        joined, single = ([name for name, _ in Bound(text, "triton", by_line=alone).lines(*given)] for alone in (False, True))
    assert joined == ["n", "a"]
    assert single == ["p", "n", "a"]
    assert list(Bound(text, "triton").region.ops()) == ["n", "a"]


@pytest.mark.parametrize("machine", ["cpu", "npu", "mlir"])
def test_other_machines_run_each_line(machine):
    assert Bound(region(JOINS["a sum"][0]), machine).region == region(JOINS["a sum"][0])


def text_program(family, folder):
    """The text program of a family's tiny model for a GPU."""
    (folder / "config.json").write_text(json.dumps(models.tiny_config(family)))
    return once.survey(folder / "config.json", named("cuda:sm_90"), "float32").program


def drawn(spec, role, sizes, draw):
    """Whole numbers count up along the last dim; every slot is seen; a weight is small."""
    empty = sample(spec, role, sizes, Bounds(2, sizes["L"]))
    if empty.dtype == torch.bool:
        return torch.ones_like(empty)
    if not empty.is_floating_point():
        return torch.arange(empty.shape[-1]).expand(empty.shape).contiguous()
    return torch.randn(empty.shape, generator=draw) * (0.15 if role == "weight" else 1.0)


def launched(bound, inputs, monkeypatch):
    """How often each kernel starts in a call."""
    counts, asked = Counter(), triton._asked
    with monkeypatch.context() as patch, triton.noted(), torch.device("meta"), torch.no_grad():
        patch.setattr(triton, "_asked", lambda kernel, *rest: counts.update([kernel.fn.__name__]) or asked(kernel, *rest))
        bound(*(t.to("meta") for t in inputs))
    return counts


@pytest.mark.parametrize("family", [pytest.param(name, marks=[pytest.mark.slow] * (name not in ("glm4", "glm4_moe")))
                                    for name in families.compiled()])
def test_the_regions_of_every_family(family, tmp_path, monkeypatch):
    """A token of one row and of two: the same numbers with fewer launches, none of them of `silu_mul`."""
    fewer = 0
    for text in text_program(family, tmp_path).regions.values():
        bound, single = Bound(text, "triton"), Bound(text, "triton", by_line=True)
        for rows in (1, 2) if bound.region != text else ():
            draw = torch.Generator().manual_seed(rows)
            given = [drawn(spec, role, {"B": rows, "S": 1, "L": 24, "M": 1}, draw) for _, role, spec in text.inputs]
            copies = [t.clone() for t in given]
            with triton.interpreted(), torch.no_grad():
                made, wanted = bound(*given), single(*copies)
            torch.testing.assert_close((*made, *given), (*wanted, *copies), rtol=1e-4, atol=1e-4)
            before, after = (launched(each, given, monkeypatch) for each in (single, bound))
            assert after["silu_mul_kernel"] == 0
            assert after.total() == before.total() - before["silu_mul_kernel"]
            fewer += len(text.body) - len(bound.region.body)
    assert fewer
