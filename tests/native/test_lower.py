"""Regions as calls of the library: what is joined, and that what cannot be lowered is refused with its reason."""

from __future__ import annotations

import pytest

from glmc.native.calls import Refused
from glmc.native.lower import lowered
from glmc.program import Region

TEXT = '''def layer_1(
    x: "value bfloat16 [B, S, 64]",
    norm: "weight bfloat16 [64]",
    gate_up: "weight bfloat16 [96, 64]",
    down: "weight bfloat16 [64, 48]",
) -> "bfloat16 [B, S, 64]":
    rms_norm = glmc.rms_norm(x, norm, eps=1e-05)
    linear = aten.linear.default(rms_norm, gate_up)
    slice = aten.slice.Tensor(linear, -1, 0, 48, 1)
    slice_1 = aten.slice.Tensor(linear, -1, 48, 9223372036854775807, 1)
    silu_mul = glmc.silu_mul(slice, slice_1)
    linear_1 = aten.linear.default(silu_mul, down)
    add = aten.add.Tensor(x, linear_1)
    return (add,)
'''


def kernels(text: str) -> list[str]:
    return [c.kernel for c in lowered(Region.parse(text)).calls]


def test_gate_up_and_the_residual_are_joined():
    found = lowered(Region.parse(TEXT))
    assert [c.kernel for c in found.calls] == ["rms_norm", "swiglu", "linear"]
    assert found.needs["gate_up"].halves
    assert not found.needs["down"].halves
    assert found.text()[-1].startswith("r4 = linear(r3, down, -, r4, r0)")


def test_a_product_that_is_read_twice_keeps_its_own_result():
    text = TEXT.replace("add = aten.add.Tensor(x, linear_1)", "more = aten.add.Tensor(x, linear_1)\n"
                        "    add = aten.add.Tensor(more, linear_1)")
    assert kernels(text) == ["rms_norm", "swiglu", "linear", "add_rms_norm", "add_rms_norm"]


def test_a_residual_that_is_made_after_the_product_is_added_after_it():
    text = TEXT.replace("add = aten.add.Tensor(x, linear_1)", "late = glmc.rms_norm(x, norm, eps=1e-05)\n"
                        "    add = aten.add.Tensor(late, linear_1)")
    assert kernels(text) == ["rms_norm", "swiglu", "linear", "rms_norm", "add_rms_norm"]


@pytest.mark.parametrize(("old", "new", "reason"), [
    ("aten.add.Tensor(x, linear_1)", "aten.exp.default(linear_1)", "no native kernel for aten.exp.default"),
    ("glmc.silu_mul(slice, slice_1)", "glmc.silu_mul(slice_1, slice)", "two halves"),
    ("-1, 48, 9223372036854775807, 1", "-1, 48, 9223372036854775807, 2", "a slice"),
    ("-1, 0, 48, 1", "-2, 0, 48, 1", "a slice"),
    ('down: "weight bfloat16 [64, 48]"', 'down: "weight bfloat16 [64, 47]"', "do not fit"),
    ('norm: "weight bfloat16 [64]"', 'norm: "weight bfloat16 [63]"', "do not fit"),
    ("aten.linear.default(silu_mul, down)", "aten.linear.default(silu_mul, x)", "not a weight"),
    ("aten.add.Tensor(x, linear_1)", "aten.to.dtype(linear_1, torch.bfloat16)", "conversion"),
    ("aten.add.Tensor(x, linear_1)", "aten.view.default(linear_1, [-1, 32])", "cuts rows"),
    ("aten.add.Tensor(x, linear_1)", "aten.transpose.int(linear_1, 0, 1)", "transpose"),
    ("aten.add.Tensor(x, linear_1)", "aten.slice.Tensor(linear_1, -1, 0, 32, 1)", "part of a row"),
    ("aten.add.Tensor(x, linear_1)", "aten.unsqueeze.default(linear_1, 0)", "unsqueeze"),
])
def test_what_no_kernel_does_is_refused(old, new, reason):
    assert old in TEXT
    with pytest.raises(Refused, match=reason):
        lowered(Region.parse(TEXT.replace(old, new)))
