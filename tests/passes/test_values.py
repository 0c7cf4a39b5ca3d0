"""References and CPU kernels against formulas written here a second time, element by element, in float64.

The other tests hold a kernel to its reference; these hold both to the mathematics. A result that is rounded r times lies
within r half steps of the exact one.
"""

from __future__ import annotations

import pytest
import torch
import traced

from glmc import kernels
from glmc.passes import declare


def both(name):
    return declare.load(name).reference, kernels.load(name, "cpu").run


def normal(*shape, dtype, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def roundings(found, exact, dtype):
    """The largest distance from the exact value, in half steps of its size."""
    step = torch.finfo(dtype).eps / 2
    return float(((found.double() - exact).abs() / (exact.abs() + 1e-30)).max() / step)


@pytest.mark.parametrize("dtype", traced.DTYPES, ids=str)
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_rms_norm(dtype, eps):
    x, weight = normal(200, 40, dtype=dtype, seed=1), normal(40, dtype=dtype, seed=2)
    wide = x.double()
    exact = weight.double() * wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt()
    for function in both("rms_norm"):
        found = function(x, weight, eps=eps)
        assert found.dtype == dtype
        assert roundings(found, exact, dtype) <= (2.1 if dtype is torch.bfloat16 else 12)


def test_rms_norm_rounds_before_the_weight():
    x, weight = normal(500, 40, dtype=torch.bfloat16, seed=1), normal(40, dtype=torch.bfloat16, seed=2)
    wide = x.float()
    row = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)).to(torch.bfloat16)
    for function in both("rms_norm"):
        assert (function(x, weight, eps=1e-5) != weight * row).sum() <= 20, "but for rare neighbours of a rounding border"


@pytest.mark.parametrize("dtype", traced.DTYPES, ids=str)
def test_silu_mul(dtype):
    gate, up = normal(200, 40, dtype=dtype, seed=1), normal(200, 40, dtype=dtype, seed=2)
    exact = gate.double() * torch.sigmoid(gate.double()) * up.double()
    for function in both("silu_mul"):
        assert roundings(function(gate, up), exact, dtype) <= (2.1 if dtype is torch.bfloat16 else 12)


@pytest.mark.parametrize("read", [-2, -1])
@pytest.mark.parametrize("write", [-2, -1])
@pytest.mark.parametrize("table", traced.DTYPES, ids=str)
def test_rope_turns_complex_numbers(read, write, table):
    lanes, width = 6, 16
    x = normal(4, 3, width, dtype=torch.bfloat16, seed=1)
    angle = normal(4, lanes, dtype=torch.float64, seed=2)
    cos, sin = angle.cos().to(table), angle.sin().to(table)

    def places(layout):
        first = torch.arange(lanes) * (2 if layout == -1 else 1)
        return first, first + (1 if layout == -1 else lanes)

    a, b = places(read)
    turned = torch.complex(x[..., a].double(), x[..., b].double()) * torch.complex(cos.double(), sin.double()).unsqueeze(-2)
    exact = x.double()
    exact[..., places(write)[0]], exact[..., places(write)[1]] = turned.real, turned.imag
    for function in both("rope"):
        found = function(x, cos, sin, read=read, write=write)
        assert torch.equal(found[..., 2 * lanes:], x[..., 2 * lanes:])
        size = x.double().abs().amax() * 2 ** -8
        worst = float((found.double() - exact).abs().max() / size)
        assert worst <= (1.01 if table is torch.float32 else 4)
        if table is torch.float32:
            assert roundings(found, exact, torch.bfloat16) <= 1.01, "float32 inside, rounded once"


@pytest.mark.parametrize("axial", [False, True])
@pytest.mark.parametrize("last", [7, 999_999])
def test_rope_table(axial, last):
    positions = torch.tensor([[0, 1], [last - 1, last]])
    inv_freq = 1.0 / 10000 ** (torch.arange(4, dtype=torch.float32) / 4)
    angle = (positions.unsqueeze(-1).float() * inv_freq).double()
    angle = angle.flatten(-2) if axial else angle
    for function in both("rope_table"):
        cos, sin = function(positions, inv_freq, axis_map=None, axial=axial, scale=0.5, dtype=torch.float32)
        assert traced.worst((cos, sin), (0.5 * angle.cos(), 0.5 * angle.sin())) <= 1e-6


def test_rope_table_of_three_axes():
    positions, inv_freq = torch.tensor([[[3, 5]], [[7, 11]], [[13, 17]]]), torch.tensor([1.0, 0.5, 0.25, 0.125])
    exact = torch.stack([positions[a].double() * float(f) for a, f in zip((2, 0, 1, 0), inv_freq, strict=True)], -1)
    for function in both("rope_table"):
        cos, sin = function(positions, inv_freq, axis_map=(2, 0, 1, 0), axial=False, scale=1.0, dtype=torch.float32)
        assert traced.worst((cos, sin), (exact.cos(), exact.sin())) <= 1e-6


def test_the_router_by_hand():
    logits, bias = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, 3.0]]), torch.tensor([0.0, 0.0, 0.4, 0.45, 0.0, -0.5])
    score = logits.sigmoid()[0]  # 0.881 0.731 | 0.622 0.5 | 0.269 0.953; with the correction group two has the most
    for function in both("moe_route"):
        weights, experts = function(logits, bias, groups=3, kept=1, top=1, normalise=False, scale=2.0)
        assert experts.tolist() == [[2]]
        assert torch.allclose(weights, 2 * score[2])
        results = function(logits, bias, groups=3, kept=2, top=3, normalise=True, scale=2.0)
        weights, experts = traced.in_order("moe_route", results)
        assert experts.tolist() == [[0, 2, 3]]
        assert torch.allclose(weights, 2 * score[[0, 2, 3]] / score[[0, 2, 3]].sum())


def test_experts_by_hand():
    x, experts = torch.randn(4, 6), torch.tensor([[0, 2], [2, 1], [1, 0], [2, 0]])
    weights, gate_up, down = torch.rand(4, 2), torch.randn(3, 10, 6), torch.randn(3, 6, 5)
    exact = torch.zeros(4, 6, dtype=torch.float64)
    for token in range(4):
        for slot in range(2):
            e = experts[token, slot]
            gate, up = (gate_up[e].double() @ x[token].double()).split(5)
            exact[token] += weights[token, slot].double() * (down[e].double() @ (gate * gate.sigmoid() * up))
    for function in both("moe_experts"):
        assert traced.worst(function(x, experts, weights, gate_up, down), exact) <= 1e-6


def test_attention_by_hand():
    query, key, value = torch.randn(2, 6, 4, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 3)
    visible = torch.rand(2, 1, 4, 5) < 0.6
    visible[..., 0] = True
    wide = key.double().repeat_interleave(3, 1), value.double().repeat_interleave(3, 1)
    scores = (query.double() @ wide[0].transpose(-1, -2) * 0.3).masked_fill(~visible, -torch.inf)
    exact = scores.softmax(-1) @ wide[1]
    for function in both("attention"):
        assert traced.worst(function(query, key, value, visible, scale=0.3), exact) <= 1e-6
        one = function(query[:, :, :1], key, value, visible[:, :, :1], scale=0.3)
        assert traced.worst(one, exact[:, :, :1]) <= 1e-6


def test_packed_projections_by_hand():
    heads, kv, width, lanes = 4, 2, 6, 2
    qkv, angle = torch.randn(2, 3, (heads + 2 * kv) * width), torch.randn(2, 3, lanes)
    q_weight, k_weight = torch.rand(width) + 0.5, torch.rand(width) + 0.5
    q_bias, k_bias = torch.randn(width), torch.randn(width)
    slots = torch.tensor([[4, 0, 2], [1, 3, 4]])
    parts = qkv.double().unflatten(-1, (heads + 2 * kv, width)).split([heads, kv, kv], -2)

    def turned(part, weight, bias):
        part = part / (part.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double() + bias.double()
        first, second = part[..., :lanes], part[..., lanes:2 * lanes]
        cos, sin = angle.double().cos().unsqueeze(-2), angle.double().sin().unsqueeze(-2)
        return torch.cat([first * cos - second * sin, second * cos + first * sin, part[..., 2 * lanes:]], -1)

    q, k, v = turned(parts[0], q_weight, q_bias), turned(parts[1], k_weight, k_bias), parts[2]
    for function in both("split_qkv_norm_rope"):
        keys, values = torch.zeros(2, 5, kv, width), torch.zeros(2, 5, kv, width)
        found = function(qkv, angle.cos(), angle.sin(), q_weight, k_weight, q_bias, k_bias, keys, values, slots, heads=heads,
                         kv_heads=kv, eps=1e-5, read=-2, write=-2, axis_map=None)
        assert traced.worst(found[0], q) <= 1e-6
        for cache, new in ((keys, k), (values, v)):
            for row in range(2):
                assert traced.worst(cache[row, slots[row]], new[row]) <= 1e-6
            assert int((cache != 0).any(-1).any(-1).sum()) == 6
        assert torch.equal(found[1], keys)
        assert torch.equal(found[2], values)
