"""The NPU's kernels on the strict emulation: equal to the references, and refused where the vendor's op would refuse."""

from __future__ import annotations

import pytest
import torch
import traced

from glmc import kernels
from glmc.errors import IncompatibleArtifact, InternalError
from glmc.kernels import npu, npu_emulated
from glmc.passes import declare

NAMES = [name for name in declare.names() if kernels.has(name, "npu")]
FORMS = [form for form in traced.every() if form[0] in NAMES]
BF16 = torch.bfloat16


def site_of(maths, dtype, wide):
    """What `accepts` sees of the maths at its sample."""
    shapes = maths.shapes(0)
    return {n: (maths.tensors[n].kind(dtype, wide), tuple(shapes[n])) for n in maths.present(0)} | maths.settings(0, dtype)


def judge(name, maths, dtype, wide, seed):
    """The kernel on the emulation is no worse than twice the reference, plus one rounding step."""
    tensors, present, scalars = traced.tensors_of(maths, dtype, wide, seed), maths.present(0), maths.settings(0, dtype)
    given = dict(zip(present, (t.clone() for t in tensors), strict=True))
    with npu.emulated():
        results = traced.everything(kernels.load(name, "npu").run(*(given.get(n) for n in maths.tensors), **scalars))
    own = traced.everything(maths.bound(present)(*(t.clone() for t in tensors), **scalars))
    right = traced.exact(maths, present, tensors, scalars)
    mine, its = (traced.worst(traced.in_order(name, r), traced.in_order(name, right)) for r in (results, own))
    assert mine <= 2 * its + torch.finfo(dtype).eps, (mine, its)
    assert [(r.dtype, r.shape) for r in results] == [(r.dtype, r.shape) for r in own]


def never(name, pair, wide):
    """Forms that the vendor's op refuses at every size."""
    sample = declare.load(name).samples[pair]
    return (name == "attention" or (name == "rms_norm" and sample.get("weight", "there") is None)
            or (name == "rope" and wide) or (name == "moe_route" and not sample["normalise"]))


@pytest.mark.parametrize("form", FORMS, ids=lambda f: "-".join(map(traced.label, f)))
def test_the_kernel_equals_the_reference_or_refuses(form):
    name, pair, dtype, wide = form
    fusion, taken = declare.load(name), 0
    for which in range(4):
        maths = traced.unseen(fusion, pair, which)
        if kernels.load(name, "npu").accepts(site_of(maths, dtype, wide)) is None:
            judge(name, maths, dtype, wide, which)
            taken += 1
    assert bool(taken) != never(name, pair, wide)


@pytest.mark.parametrize(("tokens", "slots"), [(1, 1), (1, 37), (5, 9)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_bfloat16(tokens, slots, masked):
    sizes = {"B": 2, "H": 6, "K": 2, "S": tokens, "L": slots, "D": 32, "V": 32, "scale": 0.25}
    maths = declare.Maths(declare.load("attention").reference, (sizes | ({} if masked else {"visible": None}),))
    assert kernels.load("attention", "npu").accepts(site_of(maths, BF16, False)) is None
    judge("attention", maths, BF16, False, 3)


def qkv(dtype=BF16, width=32, **changes):
    site = {"qkv": (dtype, (7, 10 * width)), "cos": (dtype, (7, 8)), "sin": (dtype, (7, 8)), "heads": 6, "kv_heads": 2,
            "eps": None, "read": -2, "write": -2, "axis_map": None}
    return "split_qkv_norm_rope", {**site, **changes}


def attends(width=32, value=32, heads=8, kv=2, dtype=BF16):
    return "attention", {"query": (dtype, (1, heads, 1, width)), "key": (dtype, (1, kv, 9, width)),
                         "value": (dtype, (1, kv, 9, value)), "scale": 1.0}


def routes(experts=16, groups=1, normalise=True):
    return "moe_route", {"logits": (torch.float32, (3, experts)), "bias": (torch.float32, (experts,)), "groups": groups,
                         "kept": 1, "top": 2, "normalise": normalise, "scale": 1.0}


def turns(width=32, heads=4, table=BF16, lanes=8, write=-2):
    return "rope", {"x": (BF16, (3, heads, width)), "cos": (table, (3, lanes)), "sin": (table, (3, lanes)), "read": -2,
                    "write": write}


REFUSED = [
    (qkv(width=48), "head_dim a power of two, found 48"), (qkv(heads=5, qkv=(BF16, (7, 288))), "remainder_of_heads at most 0"),
    (qkv(write=-1), "leaves channels where they stand"), (qkv(q_bias=(BF16, (32,))), "only after a norm"),
    (qkv(dtype=torch.float64), "float64"), (qkv(keys=(torch.float32, (1, 9, 2, 32))), "the cache is"),
    (attends(width=24, value=24), "width a multiple of 16, found 24"), (attends(value=16), "one shape"),
    (attends(heads=130), "queries_per_key_head at most 64, found 65"), (attends(dtype=torch.float32), "float32"),
    (routes(experts=4096), "experts at most 2048"), (routes(experts=16, groups=8), "group 3 to"),
    (routes(normalise=False), "always normalises"), (turns(width=2000, lanes=448), "width 2 to 894, found 896"),
    (turns(heads=1000), "heads at most 999"), (turns(table=torch.float32), "one dtype"), (turns(write=-1), "leaves channels"),
    (("rms_norm", {"x": (BF16, (3, 8)), "eps": 1e-5}), "needs a weight"),
    (("rms_norm", {"x": (BF16, (3, 8)), "weight": (torch.float32, (8,)), "eps": 1e-5}), "one dtype"),
    (("add_rms_norm", {"residual": (BF16, (1, 8)), "x": (BF16, (3, 8)), "weight": (BF16, (8,)), "eps": 1e-5}),
     "differ in shape"),
    (("silu_mul", {"gate": (torch.int32, (3, 8)), "up": (torch.int32, (3, 8))}), "int32"),
    (("moe_experts", {"x": (BF16, (3, 8)), "gate_up": (BF16, (1, 8, 8)), "down": (BF16, (1, 8, 4))}), "experts 2 to"),
]


@pytest.mark.parametrize(("site", "reason"), REFUSED, ids=lambda v: v if isinstance(v, str) else "")
def test_what_the_vendor_would_refuse_is_refused_with_the_reason(site, reason):
    name, seen = site
    assert reason in kernels.load(name, "npu").accepts(seen)


def test_what_it_takes_is_accepted():
    for name, seen in (qkv(), qkv(width=128, read=-1, write=-1, q_weight=(BF16, (128,)), q_bias=(BF16, (128,))), attends(),
                       routes(), turns()):
        assert kernels.load(name, "npu").accepts(seen) is None, name


def call(**changes):
    """The qkv op of the emulation, as our kernel calls it, with some arguments changed."""
    rows, table = torch.randn(3, 40), torch.randn(3, 1, 1, 4)
    given = {"input": rows, "sin": table, "cos": table.clone(), "q_hidden_size": 24, "kv_hidden_size": 8, "head_dim": 8}
    return npu_emulated.split_qkv_rmsnorm_rope(**{**given, **changes})


@pytest.mark.parametrize(("changes", "rule"), [
    ({"input": torch.randn(40, 3).t()}, "contiguous"), ({"sin": torch.randn(4, 3).t()[:, None, None]}, "contiguous"),
    ({"eps": 1e-5}, "both weights, or none"), ({"q_weight": torch.ones(8), "k_weight": torch.ones(8)}, "both weights, or none"),
    ({"eps": 1e-5, "q_weight": torch.ones(8)}, "both weights, or none"),
    ({"q_bias": torch.ones(8), "k_bias": torch.ones(8)}, "after a norm"), ({"head_dim": 12}, "power of two"),
    ({"sin": torch.randn(3, 1, 1, 16), "cos": torch.randn(3, 1, 1, 16)}, "tables"),
    ({"cos": torch.randn(1, 1, 1, 4)}, "tables"),
    ({"q_hidden_size": 32}, "input"), ({"input": torch.randn(3, 36), "q_hidden_size": 20, "head_dim": 4}, "remainder"),
], ids=lambda v: v if isinstance(v, str) else "")
def test_the_emulation_is_strict_about_the_qkv_op(changes, rule):
    assert len(call()) == 3
    with pytest.raises(InternalError, match=rule):
        call(**changes)


@pytest.mark.parametrize("bad", [
    lambda: npu_emulated.npu_rotary_mul(torch.randn(2, 3, 4, 8), *[torch.randn(2, 3, 1, 8)] * 2, rotary_mode="interleave"),
    lambda: npu_emulated.npu_rotary_mul(torch.randn(2, 3, 4, 8), *[torch.randn(2, 3, 1, 4)] * 2),
    lambda: npu_emulated.npu_rotary_mul(torch.randn(2, 4, 3, 8).transpose(1, 2), *[torch.randn(2, 3, 1, 8)] * 2),
    lambda: npu_emulated.npu_rms_norm(torch.randn(2, 8), torch.ones(8, dtype=BF16)),
    lambda: npu_emulated.npu_add_rms_norm(torch.randn(1, 8), torch.randn(2, 8), torch.ones(8)),
    lambda: npu_emulated.npu_swiglu(torch.randn(2, 7)),
    lambda: npu_emulated.npu_fused_infer_attention_score(*[torch.randn(1, 3, 2, 32)] * 3, num_heads=2, num_key_value_heads=2,
                                                         input_layout="BSND"),
    lambda: npu_emulated.npu_grouped_matmul([torch.randn(5, 4)], [torch.randn(2, 4, 3)], group_list=torch.tensor([2, 4]),
                                            split_item=2, group_type=0),
    lambda: npu_emulated.npu_grouped_matmul([torch.randn(5, 4)], [torch.randn(2, 4, 3)],
                                            group_list=torch.tensor([2, 5], dtype=torch.int32), split_item=2, group_type=0),
    lambda: npu_emulated.npu_moe_gating_top_k(torch.randn(2, 8), 2, norm_type=0),
])
def test_the_emulation_is_strict_about_the_other_ops(bad):
    with pytest.raises(InternalError, match="the NPU would refuse"):
        bad()


def test_rows_of_a_wider_tensor_are_made_contiguous_for_the_op():
    scalars = {"heads": 6, "kv_heads": 2, "eps": None, "read": -2, "write": -2, "axis_map": None}
    wider, cos, sin = torch.randn(2, 3, 100), torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    with npu.emulated():
        made = kernels.load("split_qkv_norm_rope", "npu").run(wider[..., :80], cos, sin, **scalars)
    wanted = declare.load("split_qkv_norm_rope").reference(wider[..., :80], cos, sin, **scalars)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(made, wanted, strict=True))


def test_gate_and_up_of_one_product_are_not_copied():
    run = kernels.load("silu_mul", "npu")
    both = torch.randn(3, 5, 16)
    gate, up = both.chunk(2, dim=-1)
    assert run.packed(gate, up).data_ptr() == both.data_ptr()
    for a, b in ((up, gate), (gate, gate), (gate, torch.randn(3, 5, 8)), (gate[:, :1], up[:, 1:2])):
        assert torch.equal(run.packed(a, b), torch.cat((a, b), -1))


def test_without_the_vendor_the_missing_package_is_named():
    with pytest.raises(IncompatibleArtifact, match="torch_npu"):
        kernels.load("rms_norm", "npu").run(torch.randn(2, 8), torch.ones(8), eps=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_contract_says_where_it_stands(name):
    contract = kernels.load(name, "npu").CONTRACT
    assert contract.op.split(".")[0] in ("torch_npu", "sgl_kernel_npu")
    assert contract.source
    assert contract.since
    assert contract.dtypes
