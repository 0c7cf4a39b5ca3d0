"""Products with few rows: against float64 in the interpreter, within their tensors, and built for every GPU at real sizes."""

from __future__ import annotations

import pytest
import torch
import within
from torch.nn import functional

from glmc.kernels import triton
from glmc.kernels.linear import triton as linear
from glmc.region import Bound
from glmc.target import TARGETS

GPUS = {name: target.gpu for name, target in TARGETS.items() if target.gpu is not None}
ROWS = [1, 2, 3, linear.FEW, linear.FEW + 1]


def made(rows, outputs, inputs, dtype=torch.float32, bias=True):
    drawn = torch.Generator().manual_seed(rows + outputs + inputs)
    tensors = (torch.randn(*shape, generator=drawn).to(dtype) for shape in ((rows, inputs), (outputs, inputs), (outputs,)))
    x, weight, given = tensors
    return x, weight, given if bias else None


def judge(found, x, weight, bias):
    exact = functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert found.dtype == x.dtype
    assert found.shape == exact.shape
    scale = functional.linear(x.double().abs(), weight.double().abs()).max()
    rounding = torch.finfo(x.dtype).eps / 2 * exact.abs() + 1e-6 * scale  # one rounding, and the order of float32 sums
    if x.numel() // x.shape[-1] > linear.FEW:
        rounding = 2 * rounding  # the library's own
    assert bool(((found.double() - exact).abs() <= rounding).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("sizes", [(1, 1), (5, 33), (70, 600), (130, 64), (4, 9000)], ids=str)
def test_it_is_the_product_rounded_once(rows, sizes, bias, dtype):
    given = made(rows, *sizes, dtype, bias)
    with triton.interpreted():
        judge(linear.run(*given), *given)


@pytest.mark.parametrize("rows", [1, 3])
def test_inputs_are_shared_among_programs_where_outputs_are_few(rows):
    given = made(rows, 10, 9000)
    with triton.interpreted(), torch.no_grad():
        assert linear.tile(rows, 10, 9000, 4).split > 1
        first = linear.run(*given)
        judge(first, *given)
        assert torch.equal(first, linear.run(*given))


@pytest.mark.parametrize("rows", ROWS[:-1])
def test_views_are_read_where_they_lie(rows):
    packed, weight, bias = made(rows, 9, 50)
    x, across = packed[:, 10:43], weight[:, 3:36]
    with triton.interpreted():
        judge(linear.run(x, across, bias), x, across, bias)
        judge(linear.run(x.unsqueeze(0), across, bias), x.unsqueeze(0), across, bias)
        spread = packed.t().contiguous().t()
        judge(linear.run(spread, weight.t().contiguous().t()), spread, weight, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [(1, 5, 33), (3, 70, 130), (2, 10, 9000), (1, 10, 9000)], ids=str)
def test_every_load_and_store_stays_in_its_tensors(sizes, dtype, monkeypatch):
    seen = within.watch(monkeypatch)
    with triton.interpreted():
        linear.run(*made(*sizes, dtype))
    assert seen[0], "no access was looked at"


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize(("outputs", "inputs"), [(27392, 4096), (151552, 4096), (4096, 13696), (256, 4096)])
def test_it_is_built_at_real_sizes_without_spills(outputs, inputs, gpu, tmp_path):
    asked = {}
    for rows in (1, linear.FEW):
        with triton.noted() as notes, torch.device("meta"):
            linear.run(*(t.to("meta") for t in (torch.empty(rows, inputs, dtype=torch.bfloat16),
                                                 torch.empty(outputs, inputs, dtype=torch.bfloat16, device="meta"))))
        asked |= notes
    assert {"linear_row_kernel", "linear_rows_kernel"} <= {launch.name for launch in asked}
    for launch in asked:
        _, _, used = triton.build(launch, GPUS[gpu], tmp_path)
        assert used["spilled_bytes"] == 0
        assert used["shared_bytes"] <= 64 << 10


def test_every_count_of_few_rows_is_one_launch():
    """So whatever rows a ladder of sizes tries, the ones between them were built too."""
    notes = {}
    for rows in range(2, linear.FEW + 1):
        with triton.noted() as noted, torch.device("meta"):
            linear.run(torch.empty(rows, 64), torch.empty(32, 64))
        notes |= noted
    assert len(notes) == 1


def test_a_region_bound_for_a_gpu_starts_it():
    from glmc.program import Region, Spec

    region = Region("head_1", (("x", "value", Spec("float32", ("B", "S", 64))), ("w", "weight", Spec("float32", (32, 64)))),
                    (Spec("float32", ("B", "S", 32)),), ("linear = aten.linear.default(x, w)", "return (linear,)"))
    with triton.noted() as notes, torch.device("meta"):
        Bound(region, "triton", "meta")(torch.empty(1, 1, 64), torch.empty(32, 64))
        Bound(region, "npu", "meta")(torch.empty(1, 1, 64), torch.empty(32, 64))
    assert [launch.name for launch in notes] == ["linear_row_kernel"]
