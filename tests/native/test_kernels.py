"""The native kernels against float64 or the fusions' references, in every build that this CPU can run."""

from __future__ import annotations

import native_calls
import pytest
import torch
from native_calls import WAYS, One, packed, product

from glmc.native.calls import Form, Stride
from glmc.passes import declare

IN_BYTES = ("Q8", "Q4", "MX4", "NV4")
"""Ways that round activations to bytes with a scale for each 32."""
SHAPES = [(1, 32, 32), (1, 70, 45), (2, 33, 64), (3, 16, 31), (5, 100, 96), (13, 64, 130), (130, 40, 66)]


@pytest.fixture(autouse=True, params=native_calls.VARIANTS)
def variant(request, monkeypatch):
    monkeypatch.setenv("GLMC_ISA", request.param)


def drawn(*sizes: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed + sum(sizes)))


def rounded(x: torch.Tensor, form: str) -> torch.Tensor:
    """Activations as a form multiplies with them, float64."""
    if form == "F32" or form.endswith("exact"):
        return x.double()
    if form in ("BF16", "F8"):
        return x.bfloat16().double()
    grouped = torch.nn.functional.pad(x, (0, -x.shape[1] % 32)).unflatten(1, (-1, 32))
    scale = grouped.abs().amax(-1, keepdim=True) / 127
    return ((grouped / scale.where(scale > 0, 1)).round() * scale).flatten(1)[:, :x.shape[1]].double()


@pytest.mark.parametrize("form", WAYS)
@pytest.mark.parametrize(("tokens", "outputs", "inputs"), SHAPES)
def test_a_product_is_that_of_the_rounded_operands(form, tokens, outputs, inputs):
    x, matrix, bias = drawn(tokens, inputs), drawn(outputs, inputs, seed=1), drawn(outputs, seed=2)
    residual = drawn(tokens, outputs, seed=3)
    out, keep = packed(matrix, form)
    exact = rounded(x, form) @ keep.held(out).double().T
    # A code may fall to the other side of a tie; that moves the sum by a step of one input.
    slack = 2e-6 * inputs + 0.03 * (form in IN_BYTES)
    assert (product(x, matrix, form) - exact).abs().max() < slack
    assert (product(x, matrix, form, bias, residual) - (exact + bias + residual)).abs().max() < slack


@pytest.mark.parametrize("form", WAYS)
def test_a_row_is_the_same_bits_alone_and_among_others(form):
    x, matrix = drawn(140, 200), drawn(96, 200, seed=1)
    whole = product(x, matrix, form)
    for count in (1, 2, 3, 5, 8, 17):
        assert torch.equal(product(x[:count].contiguous(), matrix, form), whole[:count])
    assert torch.equal(product(x, matrix, form, threads=1), whole)


@pytest.mark.parametrize("form", WAYS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_not_hidden(form, bad):
    x = drawn(6, 64)
    x[2, 40] = bad
    found = product(x, drawn(40, 64, seed=1), form)
    assert not found[2].isfinite().any()
    assert found[[0, 1, 3, 4, 5]].isfinite().all()


@pytest.mark.parametrize("form", WAYS)
@pytest.mark.parametrize(("tokens", "inner", "inputs"), [(1, 32, 32), (3, 23, 45), (20, 50, 96)])
def test_gate_and_up_in_one_product(form, tokens, inner, inputs):
    x, matrix = drawn(tokens, inputs), drawn(2 * inner, inputs, seed=1)
    one = One()
    rows, weight, out = one.rows(x), one.weight(*packed(matrix, form, halves=True)), one.room(inner)
    found = one.run("swiglu", [inputs, inner, Stride(rows.reg), Stride(out.reg), Form(weight.name)], [rows, weight, None, out])
    gate, up = (rounded(x, form) @ again.double().T for again in one.kept[weight.name].held(one.weights[weight.name]).chunk(2))
    assert (found[out.reg] - torch.nn.functional.silu(gate) * up).abs().max() < 1e-5 * inputs + 0.3 * (form in IN_BYTES)


@pytest.mark.parametrize("width", [1, 15, 16, 45, 64, 200])
@pytest.mark.parametrize("tokens", [1, 9])
def test_norms(width, tokens):
    x, more, scale = drawn(tokens, width), drawn(tokens, width, seed=5), 1 + drawn(width, seed=6)
    one = One()
    rows, weight, out = one.rows(x), one.weight(scale), one.room(width)
    found = one.run("rms_norm", [width, Stride(0), Stride(out.reg)], [rows, weight, out], (1e-5,))[out.reg]
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt() * scale
    assert (found - exact).abs().max() < 1e-5
    one = One()
    first, second, total, out = one.rows(x), one.rows(more), one.room(width), one.room(width)
    n = [width, *(Stride(r.reg) for r in (first, second, total, out))]
    found = one.run("add_rms_norm", n, [first, second, one.weight(scale), total, out], (1e-5,))
    exact = x.double() + more
    assert (found[total.reg] - exact).abs().max() < 1e-6
    exact = exact / (exact.square().mean(-1, keepdim=True) + 1e-5).sqrt() * scale
    assert (found[out.reg] - exact).abs().max() < 1e-5


@pytest.mark.parametrize(("experts", "groups", "kept", "top"), [(8, 2, 1, 3), (7, 1, 1, 2), (16, 4, 2, 4), (5, 1, 1, 5)])
@pytest.mark.parametrize("normalise", [True, False])
def test_routes(experts, groups, kept, top, normalise):
    logits, correction = drawn(11, experts), drawn(experts, seed=4)
    one = One()
    rows, weight = one.rows(logits), one.weight(correction)
    shares, chosen = one.room(top), one.room(top)
    n = [experts, groups, kept, top, int(normalise), Stride(rows.reg), Stride(shares.reg)]
    found = one.run("moe_route", n, [rows, weight, shares, chosen], (2.5,))
    reference = declare.load("moe_route").reference
    exact, which = reference(logits, correction, groups=groups, kept=kept, top=top, normalise=normalise, scale=2.5)
    ours = found[chosen.reg].view(torch.int32).long()
    assert torch.equal(ours.sort(-1).values, which.sort(-1).values)
    dense = torch.zeros(11, experts).scatter(1, which, exact)
    assert (torch.zeros(11, experts).scatter(1, ours, found[shares.reg]) - dense).abs().max() < 1e-6


@pytest.mark.parametrize("form", WAYS)
@pytest.mark.parametrize("tokens", [1, 2, 50])
def test_experts(form, tokens):
    count, inner, width, top = 6, 20, 48, 3
    gate_up, down = drawn(count, 2 * inner, width) * 0.2, drawn(count, width, inner, seed=1) * 0.2
    x, shares = drawn(tokens, width, seed=2), drawn(tokens, top, seed=3).abs()
    chosen = torch.stack([torch.randperm(count, generator=torch.Generator().manual_seed(i))[:top] for i in range(tokens)])
    one = One()
    rows, weights, ids = one.rows(x), one.rows(shares), one.rows(chosen.int().view(torch.float32))
    first, second, out = one.weight(*packed(gate_up, form, True)), one.weight(*packed(down, form)), one.room(width)
    n = [width, inner, count, top, Stride(rows.reg), Stride(out.reg), Stride(weights.reg), Form(first.name), Form(second.name)]
    found = one.run("moe_experts", n, [rows, weights, ids, first, second, out])[out.reg]
    first_plain, second_plain = (one.kept[w.name].held(one.weights[w.name]).double() for w in (first, second))
    exact = torch.zeros(tokens, width, dtype=torch.float64)
    for j in range(top):  # each expert with operands rounded as the form rounds them
        gate, up = (rounded(x, form).unsqueeze(1) @ first_plain[chosen[:, j]].mT).squeeze(1).chunk(2, -1)
        hidden = rounded((torch.nn.functional.silu(gate) * up).float(), form)
        exact += shares[:, j:j + 1] * (hidden.unsqueeze(1) @ second_plain[chosen[:, j]].mT).squeeze(1)
    assert (found - exact).abs().max() < (0.02 if form in IN_BYTES else 0.01 if form in ("BF16", "F8") else 1e-5)
    if form == "F32":
        assert (found - declare.load("moe_experts").reference(x, chosen, shares, gate_up, down)).abs().max() < 1e-5


@pytest.mark.parametrize("position", [0, 1, 511, 131071, 1_000_003])
def test_angles_of_large_positions(position):
    frequencies = 10000.0 ** -(torch.arange(24) / 24)
    one = One()
    weight, cos, sin = one.weight(frequencies), one.room(24), one.room(24)
    positions = torch.tensor([position, 3])
    found = one.run("rope_table", [24, Stride(cos.reg)], [weight, cos, sin], (0.5,), tokens=2, positions=positions)
    angle = (positions.float().unsqueeze(1) * frequencies).double()
    assert (found[cos.reg] - angle.cos() / 2).abs().max() < 1e-7
    assert (found[sin.reg] - angle.sin() / 2).abs().max() < 1e-7
