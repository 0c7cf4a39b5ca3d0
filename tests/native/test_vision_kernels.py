"""The kernels of vision towers against float64 or torch, in every build that this CPU can run."""

from __future__ import annotations

import native_calls
import pytest
import torch
from native_calls import One, packed

from glmc.kernels.position_table import cpu as position_table
from glmc.native.alone import alone_with
from glmc.native.calls import Form, Stride
from glmc.native.keep import Keep
from glmc.program import Region

IMAGES = [[4], [1, 1], [130, 48, 33, 1], [49, 260]]


@pytest.fixture(autouse=True, params=native_calls.VARIANTS)
def variant(request, monkeypatch):
    monkeypatch.setenv("GLMC_ISA", request.param)


def drawn(*sizes: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed + sum(sizes)))


def ends_of(images: list[int]) -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(images).cumsum(0).tolist()], dtype=torch.int32)


def attention(dtype: str, heads: int, width: int) -> Region:
    spec = f'"value {dtype} [4*M, '
    return Region.parse(f'''def vision_layer_1(
    qkv: {spec}{3 * heads * width}]",
    cos: "value float32 [4*M, {width // 4}]",
    sin: "value float32 [4*M, {width // 4}]",
    ends: "value int32 [F + 1]",
) -> "{dtype} [4*M, {heads * width}]":
    split = glmc.split_qkv_norm_rope(qkv, cos, sin, heads={heads}, kv_heads={heads}, eps=None, read=-2, write=-2, axis_map=None)
    values = operator.getitem(split, 2)
    keys = operator.getitem(split, 1)
    queries = operator.getitem(split, 0)
    q = aten.transpose.int(queries, -3, -2)
    q_1 = aten.unsqueeze.default(q, -4)
    k = aten.transpose.int(keys, -3, -2)
    k_1 = aten.unsqueeze.default(k, -4)
    v = aten.transpose.int(values, -3, -2)
    v_1 = aten.unsqueeze.default(v, -4)
    attention = glmc.attention_packed(q_1, k_1, v_1, ends, 0.25)
    back = aten.transpose.int(attention, -3, -2)
    contiguous = aten.contiguous.default(back)
    size = aten.sym_size.int(qkv, 0)
    flat = aten.reshape.default(contiguous, [size, -1])
    return (flat,)
''')


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize(("heads", "width"), [(3, 8), (2, 12), (1, 64), (2, 80), (1, 128), (1, 160)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_patch_sees_its_own_image_and_no_other(dtype, heads, width, images):
    patches, ends = sum(images), ends_of(images)
    qkv, still = drawn(patches, 3 * heads * width), torch.zeros(patches, width // 4)
    if dtype == "bfloat16":
        qkv = qkv.bfloat16().float()
    (found,) = alone_with(attention(dtype, heads, width), {})([qkv, still + 1, still, ends])
    wide = qkv.double().unflatten(1, (3, heads, width)).unbind(1)
    exact = torch.empty(patches, heads, width, dtype=torch.float64)
    for begin, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        q, k, v = (x[begin:end].transpose(0, 1) for x in wide)
        exact[begin:end] = ((q @ k.mT * 0.25).softmax(-1) @ v).transpose(0, 1)
    limit = 2e-5 if dtype == "float32" else 0.03
    assert (found.double() - exact.flatten(1)).abs().max() < limit * exact.abs().max()


def test_an_image_gives_the_same_bits_alone_and_behind_others():
    region, qkv, still = attention("bfloat16", 2, 64), drawn(210, 384), torch.zeros(210, 16)
    call = alone_with(region, {})
    (whole,) = call([qkv, still + 1, still, ends_of([77, 133])])
    (alone,) = call([qkv[77:], still[77:] + 1, still[77:], ends_of([133])])
    assert torch.equal(whole[77:], alone)


def test_gelu_is_the_exact_one():
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, -0.0, 1e-30, 80.0, -80.0])]).unsqueeze(0)
    one = One()
    rows, out = one.rows(x), one.room(x.shape[1])
    found = one.run("gelu", [x.shape[1], Stride(rows.reg), Stride(out.reg)], [rows, out])[out.reg]
    assert (found - torch.nn.functional.gelu(x.double())).abs().max() < 2e-6
    one = One()
    rows, out = one.rows(torch.full((1, 3), torch.nan)), one.room(3)
    assert one.run("gelu", [3, Stride(rows.reg), Stride(out.reg)], [rows, out])[out.reg].isnan().all()


@pytest.mark.parametrize("count", [4, 9])
def test_blocks_of_patches_become_rows(count):
    x = drawn(count * 5, 13)
    one = One()
    rows, out = one.rows(x), one.room(count * 13)
    found = one.run("merge_rows", [13, count, Stride(rows.reg), Stride(out.reg)], [rows, out], per=count)[out.reg]
    assert torch.equal(found, x.view(5, -1))


@pytest.mark.parametrize("cubic", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("side", "width"), [(4, 24), (24, 40), (1, 7)])
def test_the_table_of_positions_is_sampled_as_published(dtype, side, width, cubic):
    table, grid = drawn(side * side, width).to(dtype), torch.tensor([[1, 4, 6], [1, 30, 2], [1, 2, 2]])
    positions = torch.cat([torch.cartesian_prod(torch.arange(int(h)), torch.arange(int(w))) for _, h, w in grid])
    ends = ends_of([24, 60, 4])
    one = One()
    weight, out = one.weight(table, Keep("rows", tuple(table.shape), str(table.dtype).removeprefix("torch."))), one.room(width)
    found = one.run("position_table", [width, side, Stride(out.reg), Form(weight.name), int(not cubic)], [weight, out],
                    tokens=88, turns=positions.T.contiguous(), ends=ends.long(), grid=grid)[out.reg]
    exact = position_table.run(table.double() if dtype is torch.float32 else table.float(), positions, ends, grid, cubic)
    assert (found - exact).abs().max() < 1e-5


@pytest.mark.parametrize("axes", [[0, 1, 1, 2, 2, 2], [0, 1, 2] * 17, [2] * 40 + [1] * 30])
def test_each_lane_turns_by_its_own_axis(axes):
    frequencies, turns = 10000.0 ** -(torch.arange(len(axes)) / len(axes)), torch.tensor([[0, 7], [511, 3], [90000, 1]])
    words = [sum(axis << 2 * i for i, axis in enumerate(axes[at:at + 32])) for at in range(0, len(axes), 32)]
    one = One()
    weight, cos, sin = one.weight(frequencies), one.room(len(axes)), one.room(len(axes))
    n = [len(axes), Stride(cos.reg), 1, 0, *words]
    found = one.run("rope_table", n, [weight, cos, sin], (1.0,), tokens=2, turns=turns)
    angle = (turns[axes].T.float() * frequencies).double()
    assert (found[cos.reg] - angle.cos()).abs().max() < 1e-6
    assert (found[sin.reg] - angle.sin()).abs().max() < 1e-6
    # Without turns every axis has the token's position.
    found = one.run("rope_table", n, [weight, cos, sin], (1.0,), tokens=2, positions=torch.tensor([5, 6]))
    assert (found[cos.reg] - (torch.tensor([[5.0], [6.0]]) * frequencies).double().cos()).abs().max() < 1e-6


def test_tokens_of_images_take_their_features():
    x, features, media = drawn(6, 20), drawn(3, 20, seed=1), torch.tensor([-1, 2, 0, -1, 2, -5])
    one = One()
    rows = one.rows(x)
    found = one.run("place_media", [20, Stride(rows.reg)], [rows], media=media, features=features)[rows.reg]
    assert torch.equal(found, torch.where(media.unsqueeze(1) >= 0, features[media.clamp_min(0)], x))
    assert torch.equal(one.run("place_media", [20, Stride(rows.reg)], [rows])[rows.reg], x)


@pytest.mark.parametrize("inner", [16, 23])
def test_gate_and_up_have_biases(inner):
    x, matrix, bias = drawn(5, 40), drawn(2 * inner, 40, seed=1), drawn(2 * inner, seed=2)
    one = One()
    rows, weight, out = one.rows(x), one.weight(*packed(matrix, "F32", halves=True)), one.room(inner)
    found = one.run("swiglu", [40, inner, Stride(rows.reg), Stride(out.reg), Form(weight.name)],
                    [rows, weight, one.weight(bias), out])[out.reg]
    gate, up = (x.double() @ matrix.double().T + bias).chunk(2, 1)
    assert (found - torch.nn.functional.silu(gate) * up).abs().max() < 1e-3
