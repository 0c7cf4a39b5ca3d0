"""Products that do what stands around them: against float64, within their tensors, and built."""

from __future__ import annotations

import pytest
import torch
import within
from torch.nn import functional

from glmc.kernels import dequantise, triton
from glmc.kernels.dequantise import Coded, cpu
from glmc.kernels.linear import triton as linear
from glmc.kernels.silu_mul import triton as silu_mul
from glmc.native.keep import Keep
from glmc.target import TARGETS

GPUS = {name: target.gpu for name, target in TARGETS.items() if target.gpu is not None}
ROWS = [1, 2, 3, linear.FEW, linear.FEW + 1]
AFTER = [1, linear.TERMS, "gated"]
SIZES = [(2, 1), (6, 33), (70, 600), (130, 64), (4, 9000)]
"""Of the last, programs share the inputs."""


def made(rows, outputs, inputs, dtype=torch.float32, bias=True, after=linear.TERMS):
    """x, weight, bias or None, terms."""
    drawn = torch.Generator().manual_seed(rows + outputs + inputs)
    terms = [(rows, outputs)] * (0 if after == "gated" else after)
    x, weight, given, *others = (torch.randn(*shape, generator=drawn).to(dtype)
                                 for shape in ((rows, inputs), (outputs, inputs), (outputs,), *terms))
    return x, weight, given if bias else None, others


def judge(found, x, weight, bias, terms, gated):
    """One rounding, beside what the order of float32 sums and the exponential are off; of many rows each step's own."""
    exact = functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    sums = 1e-6 * functional.linear(x.double().abs(), weight.double().abs()).max()
    if gated:
        gate, up = exact.chunk(2, -1)
        exact = functional.silu(gate) * up
        steps = (functional.silu(gate).abs() + 1.1 * up.abs())
        sums, sizes = sums * (steps + sums) + 1e-6 * exact.abs(), steps * torch.maximum(gate.abs(), up.abs())
    else:
        exact, sizes = exact + sum(t.double() for t in terms), exact.abs() + sum(t.double().abs() for t in terms)
    eps = torch.finfo(x.dtype).eps
    few = x.numel() // x.shape[-1] <= linear.FEW
    assert (found.dtype, found.shape) == (x.dtype, exact.shape)
    assert bool(((found.double() - exact).abs() <= (eps / 2 * exact.abs() if few else 2 * eps * sizes) + sums).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("after", AFTER)
def test_product_and_what_follows_are_rounded_once(after, rows, sizes, bias, dtype):
    given, gated = made(rows, *sizes, dtype, bias, after), after == "gated"
    with triton.interpreted():
        judge(linear.run(*given, gated=gated), *given, gated)


@pytest.mark.parametrize("matrix", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float16, torch.int64], ids=str)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_what_is_read_is_widened_in_the_launch(sizes, rows, given, matrix):
    x, weight, bias, terms = made(rows, *sizes)
    x, weight = (x * 3).to(given), weight.to(matrix)
    with triton.interpreted():
        judge(linear.run(x, weight, bias, terms, wide=True), x.float(), weight.float(), bias, terms, False)
        judge(linear.run(x, weight, bias, gated=True, wide=True), x.float(), weight.float(), bias, [], True)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("rows", [1, 3])
def test_where_programs_share_the_inputs_the_second_launch_does_what_follows(rows, gated):
    assert linear.tile(rows, 4, 9000, 4, gated).split > 1
    given = made(rows, 4, 9000, after="gated" if gated else 2)
    with triton.noted() as notes, torch.device("meta"):
        linear.run(*(t.to("meta") for t in given[:3]), [t.to("meta") for t in given[3]], gated=gated)
    product, parts = notes
    assert (dict(product.constants)["GATED"], dict(parts.constants)["GATED"]) == (False, gated)
    assert dict(product.signature)["first"] == dict(product.signature)["bias"] == "constexpr"
    assert dict(parts.signature)["first"] == ("constexpr" if gated else "*fp32")


@pytest.mark.parametrize("form", dequantise.GROUPS)
@pytest.mark.parametrize("rows", [1, linear.FEW - 1, linear.FEW + 1])
@pytest.mark.parametrize(("sizes", "dtype"), [((6, 32), torch.float32), ((10, 1184), torch.bfloat16),
                                              ((2, 9024), torch.float32)], ids=str)
@pytest.mark.parametrize("after", AFTER)
def test_of_a_coded_matrix_it_is_that_of_the_decoded_one(after, sizes, dtype, rows, form):
    x, weight, bias, terms = made(rows, *sizes, dtype, after=after)
    keep = Keep(form, sizes, "float32", gpu=True)
    out = torch.empty(keep.stored()[1], dtype=torch.uint8)
    keep.pack(weight.float() * sizes[1] ** -0.5, out)
    coded = keep.bound(out)
    with triton.interpreted():
        found = linear.run(x, coded, bias, terms, gated=after == "gated")
    judge(found, x, cpu.run(coded, torch.float32 if rows <= linear.FEW else dtype), bias, terms, after == "gated")


@pytest.mark.parametrize("rows", [2, linear.FEW + 1])
@pytest.mark.parametrize("shape", [(1,), (6,), (1, 6), (3, 1, 6)], ids=str)
def test_a_term_of_another_shape_is_spread_by_a_step_of_its_own(shape, rows):
    x, weight, bias, (first, _) = made(rows, 6, 33)
    with triton.interpreted():
        found = linear.run(x, weight, bias, [first, torch.ones(shape)])
        assert torch.equal(found, linear.run(x, weight, bias) + first + torch.ones(shape))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64], ids=str)
def test_a_term_of_another_dtype_is_widened_as_torch_does(dtype):
    x, weight, bias, (first, _) = made(2, 6, 33, torch.bfloat16)
    with triton.interpreted():
        found, product = linear.run(x, weight, bias, [first.to(dtype)]), linear.run(x, weight, bias)
    assert found.dtype == torch.promote_types(torch.bfloat16, dtype)
    assert torch.equal(found, product + first.to(dtype))


def test_many_rows_are_the_steps_that_they_were():
    x, weight, bias, terms = made(linear.FEW + 1, 6, 33, torch.bfloat16)
    product = functional.linear(x, weight, bias)
    with triton.interpreted():
        assert torch.equal(linear.run(x, weight, bias, terms), product + terms[0] + terms[1])
        assert torch.equal(linear.run(x, weight, bias, gated=True), silu_mul.run(product[:, :3], product[:, 3:]))


@pytest.mark.parametrize("rows", ROWS[:-1])
def test_terms_are_read_where_they_lie(rows):
    x, weight, bias, _ = made(rows, 9, 50)
    packed = torch.randn(rows, 40)
    with triton.interpreted():
        for terms in ([packed[:, 3:12], packed[:, 20:29]], [packed.t().contiguous().t()[:, :9]]):
            judge(linear.run(x, weight, bias, terms), x, weight, bias, terms, False)
            found = linear.run(x.unsqueeze(1), weight, bias, [t.unsqueeze(1) for t in terms])
            judge(found.squeeze(1), x, weight, bias, terms, False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [(1, 6, 33), (3, 70, 130), (2, 10, 9000), (1, 10, 9000)], ids=str)
def test_every_load_and_store_stays_in_its_tensors(sizes, dtype, monkeypatch):
    seen = within.watch(monkeypatch)
    with triton.interpreted():
        for after in AFTER:
            linear.run(*made(*sizes, dtype, after=after), gated=after == "gated")
    assert seen[0], "no access was looked at"


def asked(form, dtype, outputs, inputs, rows, after):
    """The launches of a product and what follows it."""
    with triton.noted() as notes, torch.device("meta"):
        weight = (torch.empty(outputs, inputs, dtype=dtype) if form is None else Coded.of(
            form, (outputs, inputs), torch.empty(dequantise.stored(form, (outputs, inputs))[1], dtype=torch.uint8)))
        terms = [torch.empty(rows, outputs, dtype=dtype)] * (0 if after == "gated" else after)
        linear.run(torch.empty(rows, inputs, dtype=dtype), weight, None, terms, gated=after == "gated")
    return list(notes)


def published(form, dtype):
    """Launches of gate and up, and of down, at sizes of GLM-4-9B and of GLM-4.5-Air's shared expert."""
    return dict.fromkeys(launch for rows, gated, added in ((1, (27392, 4096), (4096, 13696)),
                                                           (linear.FEW, (27392, 4096), (4096, 13696)),
                                                           (linear.FEW, (2816, 4096), (4096, 1408)))
                         for after, sizes in (("gated", gated), (linear.TERMS, added))
                         for launch in asked(form, dtype, *sizes, rows, after))


@pytest.mark.parametrize("form", [None, *dequantise.GROUPS])
@pytest.mark.parametrize("gpu", GPUS)
def test_they_are_built_at_real_sizes_without_spills(gpu, form, tmp_path):
    launches = published(form, torch.bfloat16)
    assert {"linear_row_kernel", "linear_rows_kernel", "add_parts_kernel"} == {launch.name for launch in launches}
    assert {True, False} == {dict(launch.constants)["GATED"] for launch in launches}
    for launch in launches:
        _, _, used = triton.build(launch, GPUS[gpu], tmp_path)
        assert used["spilled_bytes"] == 0, launch.facts()
        assert used["shared_bytes"] <= 64 << 10, launch.name


@pytest.mark.slow
@pytest.mark.parametrize("form", [None, *dequantise.GROUPS])
@pytest.mark.parametrize("gpu", GPUS)
def test_they_are_built_without_spills_in_float32(gpu, form, tmp_path):
    for launch in published(form, torch.float32):
        assert triton.build(launch, GPUS[gpu], tmp_path)[2]["spilled_bytes"] == 0, launch.facts()


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("matrix", [torch.float32, torch.bfloat16], ids=str)
def test_a_router_is_built_without_spills(matrix, gpu, tmp_path):
    for rows in (1, linear.FEW):
        with triton.noted() as notes, torch.device("meta"):
            linear.run(torch.empty(rows, 4096, dtype=torch.bfloat16), torch.empty(128, 4096, dtype=matrix), wide=True)
        for launch in notes:
            assert dict(launch.signature).get("x", "*bf16") == "*bf16"
            assert triton.build(launch, GPUS[gpu], tmp_path)[2]["spilled_bytes"] == 0, launch.facts()


@pytest.mark.parametrize("after", AFTER)
def test_every_count_of_few_rows_is_one_launch(after):
    """So whatever rows a ladder of sizes tries, the ones between them were built too."""
    launches = {launch for rows in range(2, linear.FEW + 1) for launch in asked(None, torch.float32, 32, 64, rows, after)}
    assert len(launches) == 1
