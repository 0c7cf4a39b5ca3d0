"""When two results are apart, how results are paired, and who is to blame inside a region."""

from __future__ import annotations

import math

import pytest
import torch

from glmc.divergence import Blame, apart, first, paired, routers, values
from glmc.program import Place, Region
from glmc.streamed import Seen

BF16 = torch.bfloat16


def test_float32_may_be_a_ten_thousandth_of_the_largest_value_away():
    exact = torch.tensor([10.0, 1.0])
    near, far = apart(exact + 9e-4, exact, exact, torch.float32), apart(exact + 1.1e-3, exact, exact, torch.float32)
    assert (near.diverges, far.diverges) == (False, True)
    assert far.absolute == pytest.approx(1.1e-3, rel=1e-3)
    assert far.relative == pytest.approx(1.1e-4, rel=1e-3)


def test_bfloat16_may_be_twice_as_wrong_as_published_and_one_step():
    exact = torch.ones(4)
    published = exact + 0.01
    step = torch.finfo(BF16).eps
    assert not apart(exact + 0.0199 + step, published, exact, BF16).diverges
    assert apart(exact + 0.0201 + step, published, exact, BF16).diverges


def test_what_is_not_a_number_diverges_and_equal_infinities_do_not():
    exact = torch.tensor([1.0, -math.inf])
    assert not apart(exact.clone(), exact, exact, torch.float32).diverges
    assert apart(torch.tensor([math.nan, -math.inf]), exact, exact, torch.float32).diverges
    assert apart(torch.tensor([1.0, 5.0]), exact, exact, torch.float32).diverges


def test_a_choice_is_compared_in_the_order_of_its_indices():
    weights, indices = torch.tensor([[0.1, 0.7]]), torch.tensor([[5, 2]])
    other = (torch.zeros(1, 8), weights.flip(-1), indices.flip(-1))
    pairs = paired([weights, indices], other, other)
    assert pairs is not None
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    wrong = paired([weights, indices], (weights, indices.flip(-1)), (weights, indices.flip(-1)))
    assert not all(torch.equal(a, b) for a, b, _ in wrong)
    assert torch.equal(routers({"gate": Seen((), other), "up": Seen((), (weights,))})["gate"], other[2])


def test_results_that_cannot_be_told_apart_are_not_paired():
    one = torch.zeros(2, 3)
    assert paired([one], (one, one), (one, one)) is None
    assert paired([one], (torch.zeros(2, 4),), (torch.zeros(2, 4),)) is None
    assert paired([torch.zeros(2, dtype=torch.int64)], (one,), (one,)) is None


def test_a_table_that_has_every_lane_twice_is_compared_by_half_of_them():
    half = torch.randn(1, 5, 4)
    for whole in (torch.cat([half, half], -1), half.repeat_interleave(2, -1)):
        (pair,) = paired([half], (whole,), (whole,))
        assert torch.equal(pair[0], pair[1])
    assert paired([half], (torch.cat([half, -half], -1),), (torch.cat([half, -half], -1),)) is None


REGION = Region.parse('''def layer_0(
    x: "value float32 [B, 4]",
) -> "float32 [B, 4]":
    mul = aten.mul.Tensor(x, 2.0)
    add = aten.add.Tensor(mul, 1.0)
    mul_1 = aten.mul.Tensor(add, 3.0)
    return (mul_1,)
''')
PLACES = {"a": Place(("x",), ("mul",)), "b.inner": Place(("add",), ("mul_1",)), "b": Place(("mul",), ("mul_1",)),
          "left": Place(("x",), ("mul[0:2]",)), "fused": Place((), ())}
X = torch.randn(3, 4)


def seen(scale=2.0, shift=1.0, factor=3.0):
    """What modules saw that compute (x * scale + shift) * factor."""
    mul = X * scale
    add = mul + shift
    return {"a": Seen((X,), (mul,)), "b.inner": Seen((add,), (add * factor,)), "b": Seen((mul,), (add * factor,)),
            "left": Seen((X,), (mul[:, :2],))}


def test_values_are_those_of_the_lines():
    made = values(REGION, [X], PLACES)
    assert list(made) == ["x", "mul", "mul[0:2]", "add", "mul_1"]
    assert torch.equal(made["mul_1"], (X * 2 + 1) * 3)
    assert torch.equal(made["mul[0:2]"], (X * 2)[:, :2])


@pytest.mark.parametrize(("changed", "module"), [
    ({}, None), ({"scale": 2.1}, "a"), ({"factor": 3.1}, "b.inner"),
    ({"shift": 1.1}, "b"),  # made between the modules inside: what is around them
])
def test_the_first_module_with_a_right_input_and_a_wrong_output_is_to_blame(changed, module):
    theirs = seen(**changed)
    blame = first(PLACES, values(REGION, [X], PLACES), theirs, theirs, torch.float32)
    assert blame.module == module
    if module is None:
        assert blame == Blame(None, 4, 1)
