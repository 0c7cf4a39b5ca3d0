"""Quantised matrices as checkpoints have them: every code and scale, packed without rounding, and multiplied as they say."""

from __future__ import annotations

import native_calls
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_calls import One, keep_of, product, room

from glmc.errors import InternalError, WeightMismatch
from glmc.native import panels
from glmc.native.calls import Form, Stride
from glmc.native.keep import Keep

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def variants(test):
    return pytest.mark.parametrize("variant", native_calls.VARIANTS)(test)


def drawn(*sizes: int, most: int = 256, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, most, sizes, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def e4m3(codes: torch.Tensor) -> torch.Tensor:
    """What e4m3 codes say, float64, by the format's own words."""
    bits = codes.to(torch.int64)
    exponent, mantissa = bits >> 3 & 15, bits & 7
    size = torch.where(exponent > 0, (8 + mantissa) * 2.0 ** (exponent - 10).double(), mantissa * 2.0 ** -9)
    size = torch.where(bits & 127 == 127, torch.nan, size.double())
    return torch.where(bits > 127, -size, size)


def e2m1(codes: torch.Tensor) -> torch.Tensor:
    """[N, K / 2] of two codes a byte -> [N, K], float64; the low half is the even one."""
    return E2M1.double()[torch.stack((codes & 15, codes >> 4), -1).flatten(1).long()]


def numbers(codes: torch.Tensor) -> torch.Tensor:
    """e4m3 codes without the two that are not numbers."""
    return torch.where(codes & 127 == 127, 5, codes)


def made(form: str, rows: int, width: int, seed: int = 0, block: tuple[int, int] = (128, 128)) -> tuple[tuple, torch.Tensor]:
    """What `pack_codes` takes, random, and the matrix in float64 that it stands for."""
    if form == "F8":
        codes = numbers(drawn(rows, width, seed=seed))
        scales = torch.rand(-(-rows // block[0]), -(-width // block[1]), generator=torch.Generator().manual_seed(seed)) / 448
        wide = scales.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :width]
        return (codes, scales, 1.0, block), e4m3(codes) * wide.double()
    codes = drawn(rows, width // 2, seed=seed)
    if form == "MX4":
        scales = drawn(rows, -(-width // 32), most=9, seed=seed + 1) + 120
        factor, wide = torch.ones(()), 2.0 ** (scales.double() - 127).repeat_interleave(32, 1)
    else:
        scales = numbers(drawn(rows, -(-width // 16), most=128, seed=seed + 1))
        factor = torch.rand(rows, generator=torch.Generator().manual_seed(seed)) / 400
        wide = e4m3(scales).repeat_interleave(16, 1) * factor.double().unsqueeze(1)
    return (codes, scales, factor), e2m1(codes) * wide[:, :width]


def packed(form: str, given: tuple, rows: int, width: int, halves: bool = False, exact: bool = True,
           ) -> tuple[torch.Tensor, Keep]:
    keep = keep_of(f"{form}-exact" if exact else form, (rows, width), halves)
    out = room(keep)
    panels.pack_codes(form, *given, out=out, halves=halves)
    return out, keep


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(panels.CODED), st.integers(1, 40), st.integers(1, 150), st.booleans(), st.integers(0, 99))
def test_nothing_is_rounded(form, rows, width, halves, seed):
    rows, width = 2 * rows, 2 * width
    given_, exact = made(form, rows, width, seed)
    found = packed(form, given_, rows, width, halves)
    assert torch.equal(found[1].held(found[0]), exact.float() + 0.0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 400), st.integers(1, 70), st.sampled_from([128, 256, 400]))
def test_blocks_of_any_size(rows, width, down, across):
    given_, exact = made("F8", rows, width, block=(down, across))
    out, keep = packed("F8", given_, rows, width)
    assert torch.equal(keep.held(out), exact.float() + 0.0)


@pytest.mark.parametrize("form", panels.FORMS)
@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_build_packs_the_same_bits(form, halves, dtype, monkeypatch):
    matrix = (torch.randn(90, 333, generator=torch.Generator().manual_seed(3)) * 0.02).to(dtype)
    matrix[3, :40] *= 1e-3 if dtype == torch.float16 else 1e-38
    found = []
    for variant in native_calls.VARIANTS:
        monkeypatch.setenv("GLMC_ISA", variant)
        keep = keep_of(form, tuple(matrix.shape), halves)
        out = room(keep)
        panels.pack(matrix, form, out, halves)
        found.append(out)
        if form == "F32":
            assert torch.equal(keep.held(out), matrix.float())
        if form == "BF16":
            assert torch.equal(keep.held(out), matrix.bfloat16().float())
    assert all(torch.equal(out.view(torch.uint8), found[0].view(torch.uint8)) for out in found)


@variants
@pytest.mark.parametrize("tokens", [1, 30])
def test_every_code_with_every_scale(variant, tokens, monkeypatch):
    """255 groups of 32 inputs of which two hold each code, each scale once an output; activations pick one input."""
    monkeypatch.setenv("GLMC_ISA", variant)
    codes = torch.arange(16).repeat(1, 2).view(-1, 2)
    codes = (codes[:, 0] | codes[:, 1] << 4).to(torch.uint8).repeat(1, 255).repeat(32, 1)
    scales = torch.stack([torch.arange(255).roll(i) for i in range(32)]).to(torch.uint8)
    exact = (e2m1(codes) * 2.0 ** (scales.double() - 127).repeat_interleave(32, 1)).float()
    out, keep = packed("MX4", (codes, scales), 32, 255 * 32)
    assert torch.equal(keep.held(out), exact + 0.0)
    assert exact.isinf().any(), "scales near the end were not reached"
    assert (exact[exact != 0].abs().min() == 2.0 ** -128), "nor those near the beginning"
    finite = exact.isfinite().all(0)
    inputs = torch.nonzero(finite).flatten()[::7 if tokens > 1 else 61]
    for some in inputs.split(tokens):
        x = torch.zeros(len(some), 255 * 32)
        x[torch.arange(len(some)), some] = 1.0
        found = product(x, (out, keep_of("MX4", keep.sizes)), threads=1)
        assert torch.equal(found + 0.0, exact[:, some].T + 0.0)
        assert product(x, (out, keep), threads=1).isnan().all(), "0 times a weight that overflows is not a number"


@variants
def test_weights_that_overflow_are_infinite_where_they_are_exact(variant, monkeypatch):
    monkeypatch.setenv("GLMC_ISA", variant)
    codes = torch.full((32, 16), 0x77, dtype=torch.uint8)
    out, keep = packed("MX4", (codes, torch.full((32, 1), 254, dtype=torch.uint8)), 32, 32)
    assert (product(torch.ones(1, 32), (out, keep)) == torch.inf).all()


@variants
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_every_code_of_fp8(variant, tokens, monkeypatch):
    monkeypatch.setenv("GLMC_ISA", variant)
    codes = torch.stack([torch.arange(256).roll(i) for i in range(64)]).to(torch.uint8)
    exact = e4m3(codes)
    given_ = (codes, torch.full((1, 1), 0.5), 1.0, (64, 256))
    out, keep = packed("F8", given_, 64, 256)
    assert torch.allclose(keep.held(out), exact.float() / 2, rtol=0, atol=0, equal_nan=True)
    found = product(torch.ones(tokens, 256), (out, keep_of("F8", keep.sizes)))
    assert found.isnan().all(), "every output has a weight that is not a number"
    codes = torch.where(codes & 127 == 127, 0, codes)
    exact = e4m3(codes)
    for way in ("F8", "F8-exact"):
        out, keep = packed("F8", (codes, *given_[1:]), 64, 256, exact=way != "F8")
        for first in range(0, 256, tokens):
            x = torch.eye(256).roll(-first, 0)[:tokens].contiguous()
            assert torch.equal(product(x, (out, keep), threads=1) + 0.0, (x.double() @ exact.T).float() / 2)


@variants
@pytest.mark.parametrize("form", panels.CODED)
@pytest.mark.parametrize("tokens", [1, 5, 31])
def test_products_of_a_checkpoints_codes(variant, form, tokens, monkeypatch):
    monkeypatch.setenv("GLMC_ISA", variant)
    rows, width = 70, 330
    given_, exact = made(form, rows, width)
    x = torch.randn(tokens, width, generator=torch.Generator().manual_seed(5))
    expected = x.double() @ exact.T
    size = expected.abs().max()
    assert (product(x, packed(form, given_, rows, width)) - expected).abs().max() < 2e-6 * size
    assert (product(x, packed(form, given_, rows, width, exact=False)) - expected).abs().max() < 0.02 * size


@variants
@pytest.mark.parametrize("form", panels.CODED)
def test_a_nan_among_activations_is_not_hidden(variant, form, monkeypatch):
    monkeypatch.setenv("GLMC_ISA", variant)
    given_, _ = made(form, 34, 70)
    x = torch.ones(3, 70)
    x[1, 69] = torch.nan
    for exact in (True, False):
        found = product(x, packed(form, given_, 34, 70, exact=exact))
        assert found[1].isnan().all()
        assert found[[0, 2]].isfinite().all()


@variants
@pytest.mark.parametrize("form", panels.FORMS)
def test_a_table_is_read_from_panels(variant, form, monkeypatch):
    monkeypatch.setenv("GLMC_ISA", variant)
    matrix = torch.randn(50, 77, generator=torch.Generator().manual_seed(1))
    one = One()
    weight, out = one.weight(*native_calls.packed(matrix, form)), one.room(77)
    ids = torch.tensor([49, 0, 31, 32, 7])
    found = one.run("embedding", [77, Stride(out.reg), Form(weight.name)], [weight, out], tokens=5, ids=ids)[out.reg]
    assert torch.equal(found + 0.0, one.kept[weight.name].held(one.weights[weight.name])[ids] + 0.0)


@variants
@pytest.mark.parametrize(("first", "second"), [("MX4", "BF16"), ("BF16", "F8"), ("NV4", "MX4-exact")])
def test_experts_whose_two_matrices_differ_in_form(variant, first, second, monkeypatch):
    monkeypatch.setenv("GLMC_ISA", variant)
    draw = torch.Generator().manual_seed(2)
    gate_up, down = torch.randn(3, 40, 64, generator=draw) * 0.2, torch.randn(3, 64, 20, generator=draw) * 0.2
    one = One()
    rows, shares = one.rows(torch.randn(4, 64, generator=draw)), one.rows(torch.ones(4, 1))
    ids = one.rows(torch.tensor([[0], [2], [2], [1]]).int().view(torch.float32))
    w1, w2 = one.weight(*native_calls.packed(gate_up, first, True)), one.weight(*native_calls.packed(down, second))
    out = one.room(64)
    n = [64, 20, 3, 1, Stride(rows.reg), Stride(out.reg), Stride(shares.reg), Form(w1.name), Form(w2.name)]
    found = one.run("moe_experts", n, [rows, shares, ids, w1, w2, out])[out.reg]
    held = [one.kept[w.name].held(one.weights[w.name]) for w in (w1, w2)]
    for t, e in enumerate([0, 2, 2, 1]):
        gate, up = (held[0][e] @ one.given[rows.reg][t]).chunk(2)
        exact = held[1][e] @ (torch.nn.functional.silu(gate) * up)
        assert (found[t] - exact).abs().max() < 0.02 * exact.abs().max() + 0.01


@pytest.mark.parametrize("form", panels.CODED)
def test_experts_one_after_another(form):
    parts = [made(form, 34, 96, seed=i) for i in range(3)]
    given_ = [torch.stack([torch.as_tensor(p[0][i]) for p in parts]) for i in range(3)]
    keep = keep_of(f"{form}-exact", (3, 34, 96), True)
    out = room(keep)
    panels.pack_codes(form, given_[0], given_[1], given_[2], *parts[0][0][3:], out=out, halves=True)
    assert torch.equal(keep.held(out), torch.stack([p[1] for p in parts]).float() + 0.0)


def test_what_is_no_number_or_does_not_fit_is_refused():
    codes = drawn(32, 32)
    out = room(keep_of("MX4", (32, 64)))
    with pytest.raises(WeightMismatch, match="not a number"):
        panels.pack_codes("MX4", codes, torch.full((32, 2), 255, dtype=torch.uint8), out=out)
    with pytest.raises(WeightMismatch, match="not a number"):
        panels.pack_codes("NV4", codes, torch.full((32, 4), 0xff, dtype=torch.uint8), out=room(keep_of("NV4", (32, 64))))
    with pytest.raises(WeightMismatch, match="128 inputs"):
        panels.pack_codes("F8", drawn(32, 200), torch.ones(1, 4), 1.0, (32, 64), out=room(keep_of("F8", (32, 200))))
    for scales in (torch.zeros(32, 3, dtype=torch.uint8), torch.zeros(31, 2, dtype=torch.uint8)):
        with pytest.raises(InternalError, match="do not fit"):
            panels.pack_codes("MX4", codes, scales, out=out)
    with pytest.raises(InternalError, match="do not fit"):
        panels.pack_codes("F8", drawn(32, 200), torch.ones(1, 3), 1.0, (32, 128), out=room(keep_of("F8", (32, 200))))
    with pytest.raises(InternalError, match="other room"):
        panels.pack_codes("MX4", codes, torch.zeros(32, 2, dtype=torch.uint8), out=room(keep_of("MX4", (32, 160))))
