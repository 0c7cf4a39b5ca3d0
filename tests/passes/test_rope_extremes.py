"""Many rows and far positions: RoPE turns by the published float32 angle as exactly there as anywhere.

Two errors are kept apart. The table's own: an angle is the float32 product of position and frequency, off by up to half a
step of its size, so by 0.03 at a million; that is what is published, for every implementation. And what turning by that
angle adds, which must not grow with positions or rows.
"""

from __future__ import annotations

import pytest
import sympy
import torch

from glmc import kernels
from glmc.passes import declare
from glmc.passes.hostile import Case
from glmc.passes.replay import Replay, all_of, error_of, in_float64

FAR = 1_000_000
LANES, WIDTH, HEADS = 32, 128, 16
TOKENS = 65_536 // HEADS
STANDS = [(-2, -2), (-1, -1), (-1, -2)]


def ours(name):
    return [declare.load(name).reference, kernels.load(name, "cpu").run]


def frequencies(base: float = 10_000.0):
    return 1.0 / base ** (torch.arange(0, 2 * LANES, 2).float() / (2 * LANES))


def positions(count: int, nearest: int, farthest: int):
    return torch.randint(nearest, farthest + 1, (count,), generator=torch.Generator().manual_seed(farthest))


def table(where, dtype=torch.float32, axis_map=None):
    return declare.load("rope_table").reference(where, frequencies(), axis_map=axis_map, axial=False, scale=1.0, dtype=dtype)


def heads(tokens: int, dtype, spread: float = 1.0):
    drawn = torch.randn(tokens, HEADS, WIDTH, generator=torch.Generator().manual_seed(tokens))
    return (drawn * spread).to(dtype)


def turned_error(run, tokens, near, far, dtype, read, write):
    """The worst error of turning by the published table, against float64, relative to the row's largest value."""
    cos, sin = table(positions(tokens, near, far), dtype)
    x = heads(tokens, dtype)
    exact = in_float64(declare.load("rope").maths, {"x": x, "cos": cos, "sin": sin}, {"read": read, "write": write})
    return error_of(all_of(run(x, cos, sin, read=read, write=write)), exact)


@pytest.mark.parametrize("run", ours("rope"), ids=["reference", "kernel"])
@pytest.mark.parametrize(("read", "write"), STANDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_turning_is_as_exact_far_away_and_in_many_rows(run, read, write, dtype):
    eps = torch.finfo(dtype).eps
    for near, far in ((0, 64), (FAR - 64, FAR)):
        for tokens in (4, TOKENS):
            # Two products and a sum, each rounded to half a step; each value at most sqrt(2) of the row's largest one.
            assert turned_error(run, tokens, near, far, dtype, read, write) <= 1.5 * eps


@pytest.mark.parametrize("run", ours("rope"), ids=["reference", "kernel"])
@pytest.mark.parametrize(("read", "write"), STANDS)
def test_each_of_many_rows_is_what_it_is_alone(run, read, write):
    where = positions(TOKENS, 0, FAR)
    cos, sin = table(where)
    x = heads(TOKENS, torch.float32)
    whole = run(x, cos, sin, read=read, write=write)
    for token in (0, 1, 1023, TOKENS - 1):
        alone = run(x[token:token + 1], cos[token:token + 1], sin[token:token + 1], read=read, write=write)
        torch.testing.assert_close(whole[token:token + 1], alone, atol=1e-6, rtol=0)
    assert torch.equal(whole[..., 2 * LANES:], x[..., 2 * LANES:]), "the rest of a head passes untouched"


@pytest.mark.parametrize("run", ours("rope_table"), ids=["reference", "kernel"])
@pytest.mark.parametrize("axis_map", [None, tuple((2 * i + 1) % 3 for i in range(LANES))], ids=["one row", "three rows"])
def test_the_table_holds_the_published_angle_at_any_position(run, axis_map):
    for near, far in ((0, 64), (FAR - 4096, FAR)):
        where = positions(3 * 4096, near, far).view(3, 4096)
        where = where if axis_map is not None else where[0]
        made = run(where, frequencies(), axis_map=axis_map, axial=False, scale=1.0, dtype=torch.float32)
        angle = where.unsqueeze(-1).float() * frequencies()
        if axis_map is not None:
            angle = torch.stack([angle[row, :, lane] for lane, row in enumerate(axis_map)], dim=-1)
        for got, exact in zip(made, (angle.double().cos(), angle.double().sin()), strict=True):
            assert float((got.double() - exact).abs().max()) <= 2.0 ** -23


def test_what_the_published_float32_angle_is_off():
    """Half a step of float32 at a million is 2^-5; the frequency's own rounding adds as much again."""
    for far, bound in ((64, 2.0 ** -17), (4096, 2.0 ** -11), (FAR, 2.0 ** -4)):
        where = positions(4096, far // 2, far)
        exact = where.double().unsqueeze(-1) / 10_000.0 ** (torch.arange(0, 2 * LANES, 2).double() / (2 * LANES))
        off = (where.float().unsqueeze(-1) * frequencies()).double() - exact
        assert float(off.abs().max()) <= bound
    assert float(off.abs().max()) > 2.0 ** -9, "the error of the angle is real, and none of ours"


@pytest.mark.parametrize("name", ["rope", "qk_norm_rope", "split_qkv_norm_rope"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_exam_at_many_rows_is_the_one_at_few(name, dtype):
    """The kernel is no worse than twice the reference at 65,536 rows, and the reference no worse there than at a few."""
    maths, tokens = declare.load(name).maths, sympy.Symbol("s", integer=True)
    scalars = {"read": -2, "write": -2}
    shapes = {"cos": (dtype, (tokens, LANES)), "sin": (dtype, (tokens, LANES))}
    if name == "split_qkv_norm_rope":
        scalars |= {"heads": HEADS, "kv_heads": 2, "eps": 1e-5, "axis_map": None}
        shapes = {"qkv": (dtype, (tokens, (HEADS + 4) * WIDTH)), **shapes, "q_weight": (dtype, (WIDTH,)),
                  "k_weight": (dtype, (WIDTH,))}
        outputs = [(tokens, n, WIDTH) for n in (HEADS, 2, 2)]
    else:
        x = {"x": (dtype, (tokens, HEADS, WIDTH))}
        shapes = {**x, **shapes} if name == "rope" else {**x, "weight": (dtype, (WIDTH,)), **shapes}
        scalars |= {} if name == "rope" else {"eps": 1e-5}
        outputs = [(tokens, HEADS, WIDTH)]

    def steps(tensors, values):
        return all_of(maths.function(*(tensors.get(n) for n in maths.tensors), **scalars))

    replay = Replay(maths, shapes, scalars, outputs, {}, kernels.load(name, "cpu").run, steps)
    few, many = (replay.case(Case(sizes=sizes)) for sizes in ("odd", "many rows"))
    assert many[3] == (65_536 if name != "split_qkv_norm_rope" else (1 << 23) // ((HEADS + 4) * WIDTH) * HEADS)
    for kernel, plain, step, _ in (few, many):
        assert kernel <= 2 * plain + step
    assert many[1] <= 2 * few[1] + few[2]
