"""No result of a Triton kernel depends on the order in which its programs run, and no two programs touch what one writes."""

from __future__ import annotations

import ordering
import pytest
import torch
import traced
import triton
import triton.language as tl
from launching import OPS, calls, own

from glmc.kernels.triton import interpreted, launch


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
