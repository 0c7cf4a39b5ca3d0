"""Every Triton kernel, in Triton's interpreter, against float64: no worse than twice the reference, within its tensors."""

from __future__ import annotations

import inspect

import pytest
import torch
import traced
import within

from glmc import kernels
from glmc.errors import InternalError, UsageError
from glmc.kernels import triton
from glmc.kernels.moe_experts import triton as experts
from glmc.passes import declare

NAMES = [name for name in declare.names() if kernels.has(name, "triton")]
FORMS = [form for form in traced.every() if form[0] in NAMES]


@pytest.fixture(autouse=True)
def interpreted():
    with triton.interpreted():
        yield


@pytest.fixture(params=FORMS, ids=lambda f: "-".join(map(traced.label, f)))
def form(request):
    name, *rest = request.param
    return declare.load(name), *rest


def judge(fusion, maths, tensors, dtype):
    present, scalars = maths.present(0), maths.settings(0, dtype)
    given = dict(zip(present, (t.clone() for t in tensors), strict=True))
    results = traced.everything(kernels.load(fusion.name, "triton").run(*(given.get(n) for n in maths.tensors), **scalars))
    own = traced.everything(maths.bound(present)(*(t.clone() for t in tensors), **scalars))
    right = traced.exact(maths, present, tensors, scalars)
    mine, its = (traced.worst(traced.in_order(fusion.name, r), traced.in_order(fusion.name, right)) for r in (results, own))
    assert mine <= 2 * its + torch.finfo(dtype).eps, (mine, its)
    assert [(r.dtype, r.shape) for r in results] == [(r.dtype, r.shape) for r in own]


def test_the_kernel_passes_its_exam(form):
    fusion, pair, dtype, wide = form
    for which, spread in enumerate((1.0, 1e-3, 30.0)):
        maths = traced.unseen(fusion, pair, which)
        judge(fusion, maths, traced.tensors_of(maths, dtype, wide, which, spread), dtype)


def test_every_load_and_store_stays_in_its_tensors(form, monkeypatch):
    """An access beyond a tensor is found by its address, whether or not its value is used: partial width, odd sizes."""
    fusion, pair, dtype, wide = form
    maths = traced.unseen(fusion, pair, 1)
    tensors = traced.tensors_of(maths, dtype, wide)
    seen = within.watch(monkeypatch)
    present, scalars = maths.present(0), maths.settings(0, dtype)
    given = dict(zip(present, tensors, strict=True))
    kernels.load(fusion.name, "triton").run(*(given.get(n) for n in maths.tensors), **scalars)
    assert seen[0], "no access was looked at"


@pytest.mark.parametrize("name", NAMES)
def test_the_kernel_takes_what_the_reference_takes(name):
    def signature(function):
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]

    assert signature(kernels.load(name, "triton").run) == signature(declare.load(name).reference)


WAITING = {"latent_attention", "lightning_indexer"}
"""Refused on GPUs, where their steps run one by one, until there are kernels for them."""


def test_every_fusion_has_a_kernel_but_those_that_wait_for_one():
    assert set(declare.names()) == set(NAMES) | WAITING
    assert not WAITING & set(NAMES)


@pytest.mark.parametrize("tokens", [1, experts.FEW, experts.FEW + 1, 70])
def test_few_and_many_tokens_through_experts(tokens):
    sizes = {"T": tokens, "H": 24, "E": 7, "K": 3, "I": 20, "J": 40}
    maths = declare.Maths(declare.load("moe_experts").reference, (sizes,))
    judge(declare.load("moe_experts"), maths, traced.tensors_of(maths, torch.float32), torch.float32)


@pytest.mark.parametrize("slots", [1, 63, 64, 65, 300])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_over_contexts_of_any_length(slots, masked):
    sizes = {"B": 2, "H": 6, "K": 2, "S": 1, "L": slots, "D": 20, "V": 12, "scale": 0.25}
    sizes |= {} if masked else {"visible": None}
    maths = declare.Maths(declare.load("attention").reference, (sizes,))
    judge(declare.load("attention"), maths, traced.tensors_of(maths, torch.float32), torch.float32)


def test_a_table_for_every_row_of_a_batch_is_read_as_such():
    x, run = torch.randn(2, 5, 3, 16), kernels.load("rope", "triton").run
    for lead in ((5,), (1, 5), (2, 5), (1, 1), (2, 1)):
        cos, sin = torch.randn(*lead, 6), torch.randn(*lead, 6)
        wanted = declare.load("rope").reference(x, cos, sin, read=-1, write=-2)
        assert torch.allclose(run(x, cos, sin, read=-1, write=-2), wanted, atol=1e-6)


def test_views_with_a_distance_of_their_own_are_read_where_they_lie():
    packed = torch.randn(3, 4, 40)
    gate, up = packed.chunk(2, dim=-1)
    run, rope = kernels.load("silu_mul", "triton").run, kernels.load("rope", "triton").run
    assert torch.allclose(run(gate, up), torch.nn.functional.silu(gate) * up, atol=1e-6)
    heads = packed[..., 8:32].unflatten(-1, (3, 8))
    cos, sin = torch.randn(3, 4, 2), torch.randn(3, 4, 2)
    wanted = declare.load("rope").reference(heads, cos, sin, read=-2, write=-2)
    assert torch.allclose(rope(heads, cos, sin, read=-2, write=-2), wanted, atol=1e-6)


@pytest.mark.parametrize("axis_map", [(), (0, 3), (0, -1), (2, 0)])
def test_an_axis_that_is_not_there_is_refused(axis_map):
    with pytest.raises(InternalError, match="axis map"):
        kernels.load("pick_lanes", "triton").run(torch.randn(2, 3, len(axis_map)), axis_map)


@pytest.mark.parametrize("lanes", [1, 15, 16, 17, 33, 64, 65])
def test_lanes_are_picked_by_the_bits_of_the_map(lanes):
    x, axis_map = torch.randn(3, 4, lanes), [(i * 7 + 2) % 3 for i in range(lanes)]
    wanted = torch.stack([x[row, :, lane] for lane, row in enumerate(axis_map)], -1)
    assert torch.equal(kernels.load("pick_lanes", "triton").run(x, axis_map), wanted)


def test_bfloat16_is_rounded_and_not_cut_off():
    x = torch.randn(64, 32, dtype=torch.bfloat16)
    made = kernels.load("rms_norm", "triton").run(x, None, eps=1e-5)
    wide = x.double()
    exact = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)).float().bfloat16()
    assert float((made != exact).float().mean()) < 0.01


def test_what_lies_beside_a_tensor_keeps_its_bits():
    """In a file of weights codes lie beside bfloat16, and some of them are the bits of a signalling NaN."""
    storage = torch.full((64,), 0x7F81, dtype=torch.int16).view(torch.uint8)
    weight = storage[:64].view(torch.bfloat16)
    weight.copy_(torch.ones(32))
    kernels.load("rms_norm", "triton").run(torch.randn(2, 32, dtype=torch.bfloat16), weight, eps=1e-5)
    assert torch.equal(storage[64:].view(torch.int16), torch.full((32,), 0x7F81, dtype=torch.int16))


def test_tensors_on_no_gpu_are_refused_outside_the_interpreter():
    token = triton._INTERPRETED.set(False)
    with pytest.raises(UsageError, match="runs on a GPU"):
        kernels.load("rms_norm", "triton").run(torch.randn(2, 8), None, eps=1e-5)
    triton._INTERPRETED.reset(token)
