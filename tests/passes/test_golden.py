"""Our references and CPU kernels against what other projects' own code gave: SGLang, sgl-kernel-npu and transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from glmc import kernels
from glmc.axis_map import LAYOUTS, axis_map
from glmc.kernels import npu, triton
from glmc.passes import declare

DATA = Path(__file__).parents[1] / "data"
MAPS = load_file(DATA / "sglang" / "mrope_axis_map.safetensors")
ROTATED = load_file(DATA / "sglang" / "mrope_rotate.safetensors")
PACKED = load_file(DATA / "sglang" / "split_qkv_rmsnorm_rope.safetensors")
with safe_open(DATA / "sglang" / "split_qkv_rmsnorm_rope.safetensors", "pt") as _opened:
    CASES = {k: v for k, v in json.loads(_opened.metadata()["cases"]).items() if f"{k}.qkv" in PACKED}
CONFIGS = {"partial_h128_r64_s8_12_12": ((8, 12, 12), 64), "full_h128_r128_s16_24_24": ((16, 24, 24), 128)}
STANDS = {"half": -2, "gptj": -1}
APPLIED = json.loads((DATA / "multimodal" / "mrope_apply.json").read_text())
BF16 = torch.finfo(torch.bfloat16).eps


def reference(name):
    return declare.load(name).reference


def kernel(name):
    return kernels.load(name, "cpu").run


def interpreted(name):
    """The Triton kernel, in Triton's interpreter."""
    def run(*tensors, **scalars):
        with triton.interpreted():
            return kernels.load(name, "triton").run(*tensors, **scalars)

    return run


def emulated(name):
    """The NPU's op, on the strict emulation; where it has none, the CPU's."""
    def run(*tensors, **scalars):
        with npu.emulated():
            return kernels.load(name, "npu" if kernels.has(name, "npu") else "cpu").run(*tensors, **scalars)

    return run


ALL = pytest.mark.parametrize("ours", [reference, kernel, interpreted, emulated])
NOT_NPU = pytest.mark.parametrize("ours", [reference, kernel, interpreted])  # its op takes a table of the heads' dtype


def close(result, wanted):
    torch.testing.assert_close(result, wanted, atol=1e-5, rtol=0)


def order(x):
    """float -> int so that neighbours in a two-byte dtype are neighbours."""
    bits = x.contiguous().view(torch.int16).int()
    return torch.where(bits < 0, -(2**15) - bits, bits)


def steps_apart(result, wanted):
    """How many representable values lie between two tensors of one two-byte dtype, at most."""
    assert result.dtype == wanted.dtype
    return int((order(result) - order(wanted)).abs().max())


def tables(ours, positions, width, picked):
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, width, 2).float() / width)
    return ours("rope_table")(positions, frequencies, axis_map=picked, axial=False, scale=1.0, dtype=torch.float32)


@pytest.mark.parametrize("case", [k for k in MAPS if not k.endswith("section")])
def test_axis_maps(case):
    wanted = MAPS[case].tolist()
    assert list(axis_map(MAPS[f"{case}.effective_section"].tolist(), len(wanted), "glm_interleaved")) == wanted


@ALL
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("config", CONFIGS)
def test_three_axes_in_float32(ours, layout, config):
    section, width = CONFIGS[config]
    cos, sin = tables(ours, ROTATED["positions.random"], width, axis_map(section, width // 2, layout))
    if layout == "glm_interleaved":
        close(cos, ROTATED[f"{config}.random.{layout}.cos"])
        close(sin, ROTATED[f"{config}.random.{layout}.sin"])
    for pairing, stands in STANDS.items():
        for name in "qk":
            x = ROTATED[f"{config}.random.{name}_in"].unflatten(-1, (-1, 128))
            turned = ours("rope")(x, cos, sin, read=stands, write=stands).flatten(-2)
            close(turned, ROTATED[f"{config}.random.{layout}.{pairing}.{name}_out"])


@NOT_NPU
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_three_axes_in_half_types_with_a_float32_table(ours, layout, config, dtype):
    section, width = CONFIGS[config]
    cos, sin = tables(ours, ROTATED["positions.random"], width, axis_map(section, width // 2, layout))
    for pairing, stands in STANDS.items():
        x = ROTATED[f"{config}.random.q_in"].unflatten(-1, (-1, 128)).to(dtype)
        turned = ours("rope")(x, cos, sin, read=stands, write=stands)
        whole = ours("rope")(x.float(), cos, sin, read=stands, write=stands)
        assert turned.dtype == dtype
        assert steps_apart(turned, whole.to(dtype)) <= 1
        # The golden heads are not rounded before they turn: half a step of the input more.
        exact = ROTATED[f"{config}.random.{layout}.{pairing}.q_out"].unflatten(-1, (-1, 128))
        assert bool(((turned.float() - exact).abs() <= 1.5 * torch.finfo(dtype).eps * exact.abs().amax(-1, keepdim=True)).all())


@ALL
@pytest.mark.parametrize("number", range(len(APPLIED["cases"])))
def test_transformers_rotary_classes(ours, number):
    case = APPLIED["cases"][number]
    lanes = case["rotary_dim"] // 2
    stands = -1 if case["style"] == "glm4v" else -2
    cos, sin = tables(ours, torch.tensor(APPLIED["positions"]), case["rotary_dim"],
                      axis_map(case["mrope_section"], lanes, "chunked"))
    close(cos, torch.tensor(case["cos"]))
    close(sin, torch.tensor(case["sin"]))
    x = torch.tensor(APPLIED["q"]).reshape(6, 1, 128)
    close(ours("rope")(x, cos, sin, read=stands, write=stands).flatten(), torch.tensor(case["q_out"]))


def packed(ours, case, wide_table=False, wide=False):
    """q, k and v of a golden case, as rows. wide_table: float32 cos and sin; wide: everything float32."""
    facts = CASES[case]
    lanes = facts["rotary_dim"] // 2
    table = {k: PACKED[f"{case}.{k}"].flatten(1) for k in ("cos", "sin")}
    assert all(torch.equal(t[:, :lanes], t[:, lanes:]) for t in table.values())
    given = [PACKED[f"{case}.qkv"], *(t[:, :lanes].float() if wide_table else t[:, :lanes] for t in table.values()),
             *(PACKED.get(f"{case}.{k}") for k in ("q_weight", "k_weight", "q_bias", "k_bias"))]
    stands = -2 if facts["is_neox"] else -1
    made = ours("split_qkv_norm_rope")(*(t if t is None or not wide else t.float() for t in given), heads=facts["nq"],
                                       kv_heads=facts["nkv"], eps=facts["eps"], read=stands, write=stands, axis_map=None)
    return [t.flatten(1) for t in made]


@ALL
@pytest.mark.parametrize("case", [k for k, v in CASES.items() if v["dtype"] == "torch.float32"])
def test_packed_rows_in_float32(ours, case):
    for result, name in zip(packed(ours, case), "qkv", strict=True):
        close(result, PACKED[f"{case}.{name}_out"])


@pytest.mark.parametrize("ours", [interpreted, emulated])
@pytest.mark.parametrize("case", [k for k, v in CASES.items() if v["dtype"] != "torch.float32"])
def test_packed_rows_in_half_types_are_rounded_once(ours, case):
    """What runs on a GPU or an NPU is float32 inside: one step from the golden op, whose table is of the heads' dtype too."""
    for result, name in zip(packed(ours, case), "qkv", strict=True):
        assert steps_apart(result, PACKED[f"{case}.{name}_out"]) <= 1


def test_the_golden_cases_have_what_the_op_has():
    forms = {(v["eps"] is not None, v["bias"], v["is_neox"], v["dtype"][6:]) for v in CASES.values()}
    assert {(True, False, True, "float32"), (True, True, True, "float32"), (True, True, False, "float32"),
            (False, False, False, "float32"), (False, False, True, "bfloat16")} <= forms


@ALL
@pytest.mark.parametrize("case", [k for k, v in CASES.items() if v["dtype"] != "torch.float32"])
def test_packed_rows_in_half_types(ours, case):
    """One rounding, as the golden op does, comes from a float32 table, or from float32 rows rounded at the end."""
    assert CASES[case]["eps"] is None  # with a norm GLM rounds twice more, see below
    for table_only in (True, False):
        for result, name in zip(packed(ours, case, wide_table=table_only, wide=not table_only), "qkv", strict=True):
            wanted = PACKED[f"{case}.{name}_out"]
            assert steps_apart(result.to(wanted.dtype), wanted) <= 1
    for result, name in zip(packed(ours, case), "qkv", strict=True):
        # A table in the heads' dtype, as transformers hands it over: each product and the sum are rounded. That costs up
        # to one rounding step of the head's largest value, hence many of an entry that almost cancels.
        wanted = PACKED[f"{case}.{name}_out"].float().unflatten(1, (-1, CASES[case]["head_dim"]))
        off = (result.float().reshape(wanted.shape) - wanted).abs() / wanted.abs().amax(-1, keepdim=True)
        assert float(off.max()) <= BF16


@ALL
@pytest.mark.parametrize("case", [k for k, v in CASES.items() if v["eps"] is not None])
@pytest.mark.parametrize("wide_table", [True, False])
def test_what_the_published_roundings_cost_against_one(ours, case, wide_table):
    """GLM rounds the normalised head before the weight, then the product: up to three steps of the head's largest value."""
    names = [f"{case}.{k}" for k in ("qkv", "cos", "sin", "q_weight", "k_weight", "q_bias", "k_bias")]
    saved = {n: PACKED[n] for n in names if n in PACKED}
    with pytest.MonkeyPatch.context() as patch:
        for name, tensor in saved.items():
            patch.setitem(PACKED, name, tensor.bfloat16())
        narrow, once = packed(ours, case, wide_table=wide_table), packed(reference, case, wide=True)
    for result, wanted in zip(narrow, once, strict=True):
        assert result.dtype == torch.bfloat16
        wanted = wanted.unflatten(1, (-1, CASES[case]["head_dim"]))
        off = (result.float().reshape(wanted.shape) - wanted).abs() / wanted.abs().amax(-1, keepdim=True)
        assert float(off.max()) <= 3 * BF16
