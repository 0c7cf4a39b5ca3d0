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


def copied(tensor):
    """A copy that lies in a memory like that of the tensor, which may be a view of more."""
    whole = tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)
    return whole.clone().as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def judge(fusion, maths, tensors, dtype):
    present, scalars = maths.present(0), maths.settings(0, dtype)
    given = dict(zip(present, map(copied, tensors), strict=True))
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
    maths = traced.unseen(fusion, pair, 3 if fusion.name == "latent_attention" else 1)  # many tokens are torch's there
    tensors = traced.tensors_of(maths, dtype, wide)
    seen = within.watch(monkeypatch)
    present, scalars = maths.present(0), maths.settings(0, dtype)
    given = dict(zip(present, tensors, strict=True))
    kernels.load(fusion.name, "triton").run(*(given.get(n) for n in maths.tensors), **scalars)
    assert seen[0], "no access was looked at"


@pytest.mark.parametrize("lanes", [3, 5])
def test_every_load_stays_in_a_table_of_halves_that_fill_no_power_of_two(lanes, monkeypatch):
    seen = within.watch(monkeypatch)
    cos, sin = torch.rand(2, 1, 4, lanes)
    kernels.load("rope", "triton").run(torch.rand(1, 4, 2, 4 * lanes), cos, sin, read=-2, write=-2)
    assert seen[0], "no access was looked at"


@pytest.mark.parametrize("name", NAMES)
def test_the_kernel_takes_what_the_reference_takes(name):
    def signature(function):
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]

    assert signature(kernels.load(name, "triton").run) == signature(declare.load(name).reference)


def test_every_fusion_has_a_kernel():
    assert declare.names() == NAMES


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


def closed(slots, chosen, dtype=torch.float32, **changes):
    """Latent attention of one token over a context: (maths, tensors), a cache that is a view of its first slots."""
    sizes = {"B": 2, "S": 1, "L": slots, "H": 18, "N": 10, "E": 6, "R": 20, "M": 18 * 22, "C": min(slots, 70), "scale": 0.25}
    sizes |= changes | ({} if chosen else {"chosen": None})
    maths = declare.Maths(declare.load("latent_attention").reference, (sizes,))
    made = dict(zip(maths.present(0), traced.tensors_of(maths, dtype), strict=True))
    for name in ("latent", "turned"):
        whole = torch.full((sizes["B"], slots + 1, 1, made[name].shape[-1]), float("nan"), dtype=dtype)
        whole[:, :slots] = made[name]
        made[name] = whole[:, :slots]
    both = torch.cat((made["q_plain"], made["q_turned"]), -1)
    made["q_plain"], made["q_turned"] = both.split([sizes["N"], sizes["E"]], -1)
    return maths, made


@pytest.mark.parametrize("slots", [1, 63, 64, 65, 300])
@pytest.mark.parametrize("chosen", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=traced.label)
def test_latent_attention_over_contexts_of_any_length(slots, chosen, dtype):
    maths, made = closed(slots, chosen, dtype)
    judge(declare.load("latent_attention"), maths, made.values(), dtype)


@pytest.mark.parametrize(("rows", "heads", "rank", "turned"), [(17, 1, 4, 2), (1, 16, 33, 16), (2, 33, 70, 34)])
def test_latent_attention_of_any_width(rows, heads, rank, turned):
    maths, made = closed(90, True, B=rows, H=heads, R=rank, E=turned, M=heads * 100, N=31)
    judge(declare.load("latent_attention"), maths, made.values(), torch.float32)


@pytest.mark.parametrize("chosen", [False, True])
@pytest.mark.parametrize("seen", [[0], [299], [70, 200], [*range(130, 190)]], ids=lambda s: f"{s[0]}-{s[-1]}")
def test_whole_splits_of_the_context_that_nobody_sees(seen, chosen):
    maths, made = closed(300, chosen, C=256)
    made["visible"][:] = False
    made["visible"][..., seen] = True
    if chosen:  # the rest of the choice fills it, in any order
        others = torch.tensor([s for s in range(300) if s not in seen])[:256 - len(seen)]
        order = torch.randperm(256, generator=torch.Generator().manual_seed(1))
        made["chosen"][:] = torch.cat((others, torch.tensor(seen)))[order]
    judge(declare.load("latent_attention"), maths, made.values(), torch.float32)


def test_a_slot_that_is_chosen_twice_counts_once():
    maths, made = closed(100, True, C=90)
    made["chosen"][:] = torch.tensor([7, 3, 7] * 30)
    made["visible"][:] = True
    judge(declare.load("latent_attention"), maths, made.values(), torch.float32)


def test_what_is_not_finite_in_a_seen_slot_is_not_hidden_and_in_another_not_read():
    for name in ("latent", "turned"):
        made = closed(100, False)[1]
        made["visible"][:] = torch.arange(100) % 3 == 1
        made[name][:, 8] = float("nan")
        run = kernels.load("latent_attention", "triton").run
        assert run(*made.values(), scale=0.25).isfinite().all()
        made[name][1, 7] = float("nan")
        assert run(*made.values(), scale=0.25).isnan().flatten(1).all(1).tolist() == [False, True]


@pytest.mark.parametrize("slots", [1, 63, 64, 65, 300])
@pytest.mark.parametrize("tokens", [1, 9])
def test_the_indexer_over_contexts_of_any_length(slots, tokens):
    """The keys are a view of a longer cache, the shares columns of a wider product; some slots are not seen."""
    sizes = {"B": 2, "S": tokens, "L": slots, "H": 5, "D": 18, "top": min(slots, 40), "scale": 0.25, "head_scale": 0.5}
    maths = declare.Maths(declare.load("lightning_indexer").reference, (sizes,))
    query, index, shares, visible = traced.tensors_of(maths, torch.float32)
    visible[..., sizes["top"]:] = torch.rand(visible[..., sizes["top"]:].shape) < 0.8
    index = torch.cat((index, torch.full_like(index[:, :1], float("nan"))), 1)[:, :slots]
    shares = torch.cat((torch.randn(2, tokens, 7), shares), -1)[..., 7:]
    judge(declare.load("lightning_indexer"), maths, (query, index, shares, visible), torch.float32)


def test_the_indexer_fills_a_choice_with_slots_that_are_not_seen():
    query, index, shares = torch.randn(1, 1, 3, 8), torch.randn(1, 80, 1, 8), torch.randn(1, 1, 3)
    visible = torch.zeros(1, 1, 1, 80, dtype=torch.bool)
    visible[..., [3, 70]] = True
    made = kernels.load("lightning_indexer", "triton").run(query, index, shares, visible, scale=0.5, head_scale=0.5, top=6)
    chosen = made.flatten().tolist()
    assert made.dtype is torch.int32
    assert len(set(chosen)) == 6
    assert {3, 70} < set(chosen) < set(range(80))


def test_a_score_that_is_no_number_is_chosen_and_so_not_hidden():
    query, index, shares = torch.randn(1, 1, 3, 8), torch.randn(1, 80, 1, 8), torch.ones(1, 1, 3)
    index[0, 41, 0, 5] = float("nan")
    visible = torch.ones(1, 1, 1, 80, dtype=torch.bool)
    made = kernels.load("lightning_indexer", "triton").run(query, index, shares, visible, scale=0.5, head_scale=0.5, top=2)
    assert 41 in made.flatten().tolist()


@pytest.mark.parametrize(("name", "site", "reason"), [
    ("latent_attention", {"latent": (torch.bfloat16, (1, 9, 1, 576)), "turned": (torch.bfloat16, (1, 9, 1, 64))}, "row of 576"),
    ("latent_attention", {"latent": (torch.bfloat16, (1, 9, 1, 512)), "turned": (torch.bfloat16, (1, 9, 1, 130))}, "of 130"),
    ("lightning_indexer", {"query": (torch.bfloat16, (1, 1, 32, 258))}, "head of 258"),
    ("lightning_indexer", {"query": (torch.bfloat16, (1, 1, 129, 128))}, "heads of 129"),
])
def test_what_one_program_cannot_hold_is_refused_with_the_reason(name, site, reason):
    assert reason in kernels.load(name, "triton").accepts(site)


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


@pytest.mark.parametrize("read", [-2, -1])
@pytest.mark.parametrize("tokens", [1, 3])
def test_channels_of_wider_heads_are_turned_where_they_lie(tokens, read, monkeypatch):
    """As latent attention has them: the last channels of each head of a packed product."""
    seen = within.watch(monkeypatch)
    heads = torch.randn(1, tokens, 5 * 24).unflatten(-1, (5, 24))[..., 16:]
    cos, sin = torch.randn(1, tokens, 4), torch.randn(1, tokens, 4)
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda x, real=torch.Tensor.contiguous: real(x) if x.numel() != heads.numel(
        ) else pytest.fail("the heads were copied"))
    made = kernels.load("rope", "triton").run(heads, cos, sin, read=read, write=-2)
    assert torch.allclose(made, declare.load("rope").reference(heads, cos, sin, read=read, write=-2), atol=1e-6)
    assert seen[0], "no access was looked at"


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
