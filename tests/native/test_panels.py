"""Matrices in panels: what is packed comes out again, in every form and shape, but for what the form rounds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_calls import packed

from glmc.errors import InternalError
from glmc.native import panels

SIZES = st.tuples(st.integers(1, 40).map(lambda n: 2 * n), st.integers(1, 150))


def drawn(*sizes: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed))


def again(matrix: torch.Tensor, form: str, halves: bool = False) -> torch.Tensor:
    out, keep = packed(matrix, form, halves)
    return keep.held(out)


@settings(max_examples=40, deadline=None)
@given(SIZES, st.booleans())
def test_floats_come_out_as_they_went_in(sizes, halves):
    matrix = drawn(*sizes)
    assert torch.equal(again(matrix, "F32", halves), matrix)
    assert torch.equal(again(matrix, "BF16", halves), matrix.bfloat16().float())


@settings(max_examples=40, deadline=None)
@given(SIZES, st.booleans(), st.sampled_from(["Q8", "Q4"]))
def test_codes_are_within_half_a_step_of_their_group(sizes, halves, form):
    matrix = drawn(*sizes)
    gap = (again(matrix, form, halves) - matrix).abs()
    most = torch.nn.functional.pad(matrix.abs(), (0, -sizes[1] % 32)).unflatten(1, (-1, 32)).amax(-1)
    # int8: half of the largest 127th. int4: the scale may be a third smaller than what fits, then the largest are cut.
    step = most * (0.51 / 127 if form == "Q8" else 0.40)
    assert (gap <= step.repeat_interleave(32, 1)[:, :sizes[1]] + 1e-6).all()


@pytest.mark.parametrize(("form", "most"), [("Q8", 0.006), ("Q4", 0.088)])
def test_the_error_of_normal_weights(form, most):
    matrix = drawn(256, 1024)
    assert 0.5 * most < (again(matrix, form) - matrix).norm() / matrix.norm() < most


def test_int4_is_no_worse_than_the_scale_that_fits_the_largest():
    """What llama.cpp's Q4_0 does: the value of largest size becomes -8."""
    matrix = drawn(64, 512)
    grouped = matrix.unflatten(1, (-1, 32))
    far = grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True))
    scale = far / -8
    plain = (grouped / scale).add(8.5).floor().clamp(0, 15).sub(8) * scale
    assert (again(matrix, "Q4") - matrix).norm() < 0.97 * (plain.flatten(1) - matrix).norm()


def test_zeros_stay_zero_and_alone_values_survive():
    matrix = torch.zeros(32, 64)
    matrix[3, 5], matrix[31, 63] = 4.0, -0.5
    for form in panels.FORMS:
        found = again(matrix, form)
        assert torch.allclose(found, matrix, rtol=0.002, atol=0), form


def test_experts_are_packed_one_by_one():
    matrix = drawn(3, 10, 33)
    for form in panels.FORMS:
        assert torch.equal(again(matrix, form, True), torch.stack([again(one, form, True) for one in matrix]))


def test_threads_share_a_large_matrix(monkeypatch):
    matrix = drawn(200, 50)
    whole = [packed(matrix, form, halves)[0] for form in panels.FORMS for halves in (False, True)]
    monkeypatch.setattr(panels, "_SMALL", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    shared = [packed(matrix, form, halves)[0] for form in panels.FORMS for halves in (False, True)]
    assert all(torch.equal(a, b) for a, b in zip(whole, shared, strict=True))


def test_another_shape_is_refused():
    out, _ = packed(drawn(64, 64), "Q8")
    with pytest.raises(InternalError, match="another shape"):
        panels.unpack(out, "Q8", (96, 64))
