"""Kernels that decode quantised matrices: every code and scale, products with any rows, interpreted; built for every GPU."""

from __future__ import annotations

import pytest
import quantised
import torch
import within
from torch.nn import functional

from glmc import kernels
from glmc.errors import InternalError, WeightMismatch
from glmc.kernels import dequantise, triton
from glmc.kernels.dequantise import Coded, cpu
from glmc.kernels.dequantise import triton as decoding
from glmc.kernels.linear import triton as linear
from glmc.kernels.moe_experts import triton as experts
from glmc.native.keep import Keep
from glmc.passes import declare
from glmc.target import TARGETS

FORMS = list(dequantise.GROUPS)
GPUS = {name: target.gpu for name, target in TARGETS.items() if target.gpu is not None}
DTYPES = [torch.float32, torch.bfloat16]


def drawn(form, *sizes):
    """A matrix or experts, quantised from random floats."""
    keep = Keep(form, sizes, "float32", gpu=True)
    out = torch.empty(keep.stored()[1], dtype=torch.uint8)
    draw = torch.Generator().manual_seed(sum(sizes))
    keep.pack(torch.randn(sizes, generator=draw) * sizes[-1] ** -0.5, out)
    return keep.bound(out)


def filled(form, codes, scales, factors):
    out = torch.empty(dequantise.stored(form, (len(codes), codes.shape[1] * (1 if form == "F8" else 2)))[1], dtype=torch.uint8)
    dequantise.fill(form, codes, scales, factors, out)
    return Coded.of(form, (len(codes), codes.shape[1] * (1 if form == "F8" else 2)), out)


def every(form):
    """Every code with every scale that a kernel takes, and their values by tables of their own."""
    e4m3 = torch.from_numpy(quantised.e4m3()).double()
    numbers = torch.tensor([code if code & 127 != 127 else 0 for code in range(256)], dtype=torch.uint8)
    if form == "F8":
        scales = torch.tensor([[1.0, 0.3], [2.0**-100, 2.0**100], [7.0, 1e-3]])
        codes = numbers.repeat(3, 1)
        return (codes, scales, torch.ones(3)), e4m3[codes.int()] * scales.double().repeat_interleave(128, 1)
    pairs, factors = torch.arange(256, dtype=torch.uint8).repeat(256, 1), torch.linspace(0.01, 3, 256)
    size = torch.from_numpy(quantised.E2M1).double()
    values = torch.cat((size, -size))[torch.stack((pairs & 15, pairs >> 4), -1).flatten(1).int()]
    if form == "MX4":
        bytes_ = torch.arange(256).clamp(max=dequantise.LARGEST).unsqueeze(1)
        return (pairs, bytes_.to(torch.uint8).repeat(1, 16), factors), values * 2.0 ** (bytes_.double() - 127)
    near = e4m3[numbers.int()] * factors.double()
    return (pairs, numbers.unsqueeze(1).repeat(1, 32), factors), values * near.unsqueeze(1)


@pytest.mark.parametrize("form", FORMS)
def test_every_code_and_scale(form):
    given, exact = every(form)
    coded = filled(form, *given)
    with triton.interpreted():
        found = decoding.run(coded, torch.float32)
    assert torch.allclose(found.double(), exact, rtol=1.2e-7, atol=0)  # one rounding; of MX4 none
    assert torch.equal(found, cpu.run(coded, torch.float32))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", [(5, 32), (3, 192), (70, 96), (2, 3, 64)], ids=str)
def test_a_matrix_is_decoded_as_it_was_laid_out(form, sizes):
    coded = drawn(form, *sizes)
    for dtype in DTYPES:
        with triton.interpreted():
            assert torch.equal(decoding.run(coded, dtype), cpu.run(coded, dtype))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [1, linear.FEW - 1, linear.FEW + 1])
@pytest.mark.parametrize(("sizes", "dtype"), [((5, 32), torch.float32), ((9, 1184), torch.bfloat16),
                                              ((2, 9024), torch.float32)], ids=str)
def test_a_product_is_that_of_the_decoded_matrix(rows, sizes, form, dtype):
    coded = drawn(form, *sizes)
    x, bias = torch.randn(rows, sizes[1]).to(dtype), torch.randn(sizes[0]).to(dtype)
    matrix = cpu.run(coded, torch.float32).double()
    exact = functional.linear(x.double(), matrix, bias.double())
    terms = functional.linear(x.double().abs(), matrix.abs(), bias.double().abs())
    with triton.interpreted():
        found = linear.run(x, coded, bias)
    assert (found.dtype, found.shape) == (dtype, exact.shape)
    rounded = 0.0 if dtype == torch.float32 else 2**-7 * exact.abs().max()
    assert bool(((found.double() - exact).abs() <= 1e-6 * terms + rounded).all())


def through(tokens, gate_up, down, dtype, run, wide=False):
    draw = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, down.shape[1], generator=draw).to(dtype)
    chosen = torch.stack([torch.randperm(down.shape[0], generator=draw)[:3] for _ in range(tokens)])
    shares = torch.rand(tokens, 3, generator=draw)
    return run(x.double() if wide else x, chosen, shares.double() if wide else shares, gate_up, down)


@pytest.mark.parametrize(("forms", "dtype"), [(("MX4", "MX4"), torch.float32), (("F8", "F8"), torch.bfloat16),
                                              (("NV4", "NV4"), torch.float32), (("NV4", None), torch.bfloat16),
                                              ((None, "F8"), torch.float32)], ids=str)
@pytest.mark.parametrize("tokens", [1, experts.FEW + 1])
def test_experts_are_those_of_the_decoded_matrices(tokens, forms, dtype):
    coded = [drawn(form or "F8", *sizes) for form, sizes in zip(forms, ((5, 64, 64), (5, 64, 32)), strict=True)]
    plain = [cpu.run(w, dtype if form is None else torch.float32) for form, w in zip(forms, coded, strict=True)]
    given = [p if form is None else c for form, c, p in zip(forms, coded, plain, strict=True)]
    with triton.interpreted():
        found = through(tokens, *given, dtype, experts.run)
    exact = through(tokens, *(p.double() for p in plain), dtype, declare.load("moe_experts").reference, wide=True)
    assert float((found.double() - exact).abs().max() / exact.abs().max()) <= 2e-6 + (0 if dtype == torch.float32 else 2**-6)


@pytest.mark.parametrize("form", FORMS)
def test_every_load_and_store_stays_in_its_tensors(form, monkeypatch):
    seen = within.watch(monkeypatch)
    with triton.interpreted():
        for rows in (1, 3, linear.FEW + 1):
            linear.run(torch.randn(rows, 96), drawn(form, 5, 96))
        for tokens in (1, experts.FEW + 1):
            through(tokens, drawn(form, 3, 64, 96), drawn(form, 3, 96, 32), torch.float32, experts.run)
    assert seen[0], "no access was looked at"


def asked(form, dtype):
    """One launch of each kernel at sizes of GLM-4.5-Air and GLM-4-9B."""
    def meta(*sizes):
        return Coded.of(form, sizes, torch.empty(dequantise.stored(form, sizes)[1], dtype=torch.uint8, device="meta"))

    with triton.noted() as notes, torch.device("meta"):
        for rows in (1, linear.FEW, linear.FEW + 1):
            linear.run(torch.empty(rows, 13696, dtype=dtype), meta(4096, 13696))
        for tokens in (1, 40, 2000):
            experts.run(torch.empty(tokens, 4096, dtype=dtype), torch.empty(tokens, 8, dtype=torch.int64),
                        torch.empty(tokens, 8), meta(128, 2816, 4096), meta(128, 4096, 1408))
    return list(notes)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gpu", GPUS)
def test_they_are_built_at_real_sizes_without_spills(gpu, form, tmp_path):
    launches = asked(form, torch.bfloat16)
    assert {"linear_row_kernel", "linear_rows_kernel", "dequantise_kernel", "gate_up_kernel", "down_kernel",
            "grouped_mm_kernel"} <= {launch.name for launch in launches}
    for launch in launches:
        _, _, used = triton.build(launch, GPUS[gpu], tmp_path)
        assert used["spilled_bytes"] == 0, launch.name
        assert used["shared_bytes"] <= 64 << 10, launch.name


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gpu", GPUS)
def test_they_are_built_without_spills_in_float32(gpu, form, tmp_path):
    for launch in asked(form, torch.float32):
        assert triton.build(launch, GPUS[gpu], tmp_path)[2]["spilled_bytes"] == 0, launch.name


def test_what_the_kernels_do_not_take_is_refused():
    with pytest.raises(WeightMismatch, match="larger than kernels of GPUs take"):
        filled("MX4", torch.zeros(1, 16, dtype=torch.uint8), torch.tensor([[dequantise.LARGEST + 1]], dtype=torch.uint8), None)
    with pytest.raises(InternalError, match="another shape"):
        Coded.of("F8", (4, 32), torch.empty(4, 32, dtype=torch.uint8))


def test_a_plain_matrix_starts_what_it_started_before():
    """Neither scales nor factors are arguments of a kernel for a plain matrix."""
    with triton.noted() as notes, torch.device("meta"):
        kernels.load("linear", "triton").run(torch.empty(1, 64), torch.empty(32, 64))
    (launch,) = notes
    assert dict(launch.signature)["scales"] == dict(launch.signature)["factors"] == "constexpr"
