"""No result of a Triton kernel depends on the order in which its programs run, and no two programs touch what one writes."""

from __future__ import annotations

import ordering
import pytest
import torch
import traced
import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

from glmc import kernels
from glmc.kernels.dequantise import GROUPS, Coded, stored
from glmc.kernels.grouped_mm import triton as grouped
from glmc.kernels.linear import triton as linear
from glmc.kernels.triton import interpreted, launch
from glmc.passes import declare


def own(op):
    """The kernels of an op's file that its host code starts: the other functions there are parts of them."""
    module = kernels.load(op, "triton")
    return {name for name, value in vars(module).items() if isinstance(value, JITFunction) and name.endswith("_kernel")
            and value.fn.__module__ == module.__name__}


OPS = [op for op in kernels.names() if kernels.has(op, "triton") and own(op)]


def random_coded(form, *sizes):
    made = Coded.of(form, sizes, torch.randint(0, 120, stored(form, sizes)[1], dtype=torch.uint8))
    made.scales.fill_({"MX4": 125, "F8": 0.1, "NV4": 56}[form])
    return made


def products():
    for rows, outputs, inputs in ((1, 70, 600), (1, 10, 9000), (3, 70, 600), (3, 10, 9000)):
        yield linear.run, torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    for form in GROUPS:
        for rows in (1, 3, linear.FEW + 1):
            yield linear.run, torch.randn(rows, 192), random_coded(form, 70, 192), None


def coded_matrices():
    for form in GROUPS:
        yield kernels.load("dequantise", "triton").run, random_coded(form, 70, 1184), torch.bfloat16


def grouped_products():
    order = torch.randperm(40)
    for weight in (torch.randn(5, 70, 64), random_coded("MX4", 5, 70, 64)):
        yield grouped.product, torch.randn(20, 64), weight, torch.tensor([8, 8, 20, 39, 40]), 40, order, 2


def experts():
    for tokens in (1, 40):
        chosen = torch.rand(tokens, 7).topk(3).indices
        for gate_up, down in ((random_coded("F8", 7, 64, 32), random_coded("MX4", 7, 32, 32)),
                              (torch.randn(7, 40, 24), torch.randn(7, 24, 20))):
            yield (kernels.load("moe_experts", "triton").run, torch.randn(tokens, down.shape[1]), chosen,
                   torch.rand(tokens, 3), gate_up, down)


def at(op, **sizes):
    maths = declare.Maths(declare.load(op).reference, (sizes,))
    return call_of(op, maths, torch.float32)


def contexts():
    for slots in (65, 300):
        yield at("attention", B=2, H=6, K=2, S=1, L=slots, D=20, V=12, scale=0.25)


def latent_contexts():
    sizes = {"B": 2, "S": 1, "L": 300, "H": 18, "N": 10, "E": 6, "R": 20, "M": 18 * 22, "C": 270, "scale": 0.25}
    yield at("latent_attention", **sizes)
    yield at("latent_attention", **sizes, chosen=None)


def rows_of_lanes():
    yield kernels.load("pick_lanes", "triton").run, torch.randn(3, 70, 33), [(i * 7 + 2) % 3 for i in range(33)]


FURTHER = {"linear": products, "dequantise": coded_matrices, "grouped_mm": grouped_products, "moe_experts": experts,
           "attention": contexts, "latent_attention": latent_contexts, "pick_lanes": rows_of_lanes}
"""Op -> calls beside those of its fusion's forms: contexts cut among programs, coded matrices, ops that are no fusion."""


def call_of(op, maths, dtype, wide=False):
    given = dict(zip(maths.present(0), traced.tensors_of(maths, dtype, wide), strict=True))
    if "chosen" in given:  # no slot twice, as the indexer chooses: else any of its places may count
        drawn = torch.rand(*given["chosen"].shape[:-1], maths.samples[0]["L"])
        given["chosen"] = drawn.topk(given["chosen"].shape[-1]).indices.to(given["chosen"].dtype)
    scalars = maths.settings(0, dtype)
    return lambda *tensors: kernels.load(op, "triton").run(*tensors, **scalars), *(given.get(n) for n in maths.tensors)


def calls(op):
    """(function, its arguments) for an op: every form of its fusion, and FURTHER."""
    torch.manual_seed(1)
    if op in declare.names():
        fusion = declare.load(op)
        for number, (pair, dtype, wide) in enumerate(f for f in traced.forms(fusion) if f[1] is torch.float32):
            yield call_of(op, traced.unseen(fusion, pair, 2 - number % 2), dtype, wide)
        yield call_of(op, traced.unseen(fusion, 0, 3), torch.bfloat16)
    yield from FURTHER.get(op, list)()


def bits(tensors):
    return [t.contiguous().flatten().view(torch.uint8) for t in tensors if isinstance(t, torch.Tensor)]


def under(order, function, given):
    """What a call makes, and leaves of its arguments, bit by bit, with programs in an order; and what was seen."""
    copies = [t.clone() if isinstance(t, torch.Tensor) else t for t in given]
    with pytest.MonkeyPatch.context() as patch, interpreted():
        seen = ordering.watch(patch, order)
        made = function(*copies)
    return bits([*traced.everything(made), *copies]), seen


def differs(function, given):
    """Whether what a call makes depends on the order of its programs; and what was seen."""
    first, seen = under("forward", function, given)
    others = [under(order, function, given)[0] for order in ordering.ORDERS if order != "forward"]
    return not all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True)), seen


@pytest.mark.parametrize("op", OPS)
def test_the_order_of_programs_means_nothing(op):
    most = {}
    for function, *given in calls(op):
        changed, seen = differs(function, given)
        assert not seen.faults, seen.faults
        assert not changed, [t.shape for t in given if isinstance(t, torch.Tensor)]
        most = {name: max(seen.programs.get(name, 0), most.get(name, 0)) for name in seen.programs | most}
    assert all(most.get(name, 0) > 1 for name in own(op)), ("a kernel was never started with several programs", most)


@triton.jit
def own_kernel(x, y):
    at = tl.program_id(0)
    tl.store(y + at, tl.load(x + at) * 2)


@triton.jit
def last_kernel(x, y):
    tl.store(y, tl.load(x + tl.program_id(0)))


@triton.jit
def shift_kernel(x, y):
    at = tl.program_id(0)
    tl.store(x + at, tl.load(x + at + 1))


@triton.jit
def back_kernel(x, y):
    at = tl.program_id(0) * 4 + tl.arange(0, 4)
    tl.store(y + at, tl.load(x + at))
    tl.store(x + at, tl.load(y + tl.program_id(0) * 4 + 3 - tl.arange(0, 4)))


@triton.jit
def twice_kernel(x, y):
    lane = tl.arange(0, 4)
    tl.store(y + tl.program_id(0) * 2 + lane // 2, lane * 1.0)


@triton.jit
def sum_kernel(x, y):
    tl.atomic_add(y, tl.load(x + tl.program_id(0)))


@pytest.mark.parametrize(("kernel", "changes", "fault"), [
    (own_kernel, False, None), (last_kernel, True, "two programs write one address"),
    (shift_kernel, True, "a program reads what another writes"), (back_kernel, False, "a program reads what it wrote"),
    (twice_kernel, False, "a program writes one address twice in one store"), (sum_kernel, True, None)])
def test_a_kernel_that_races_is_found(kernel, changes, fault):
    x = torch.tensor([1e8, 1.0, -1e8, 3.0, 5.0, 1e-3, 7.0, 11.0] * 2)
    changed, seen = differs(lambda x, y: launch(kernel, (4,), x, y) or y, [x, torch.zeros(16)])
    assert changed is changes
    assert set(seen.faults) == ({f"{kernel.fn.__name__}: {fault}"} if fault else set())


def test_programs_run_in_the_order_that_was_asked_for():
    places = [(x, y, 0) for x in range(3) for y in range(4)]
    assert ordering.ORDERS["backward"](places) == places[::-1]
    assert sorted(ordering.ORDERS["shuffled"](places)) == places != ordering.ORDERS["shuffled"](places)
