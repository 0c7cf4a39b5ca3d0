"""Every code under every scale, bit by bit, against the formats' definitions and SGLang's; and what is no format at all."""

import struct
from pathlib import Path

import numpy as np
import pytest
import quantised
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from glmc.checkpoint import decode
from glmc.checkpoint.dequantise import Dequantise, Expanded, dequantised
from glmc.checkpoint.folder import Checkpoint
from glmc.checkpoint.formats import Source, source_of
from glmc.checkpoint.recipe import Concatenate, Stack, Take
from glmc.errors import ConfigError, WeightMismatch, WeightMissing, WeightNotFinite

GOLDEN = load_file(Path(__file__).parents[1] / "data" / "sglang" / "mxfp4.safetensors")
E4M3 = quantised.e4m3()
BYTES = np.arange(256, dtype=np.uint8)


def bits(values):
    return torch.as_tensor(values).contiguous().view(torch.int32)


def power(byte: int) -> float:
    """2^(byte - 127) from the bits of a float64."""
    return struct.unpack("<d", struct.pack("<Q", (byte - 127 + 1023) << 52))[0]


def opened(folder, stored):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    quantised.save(folder / "model.safetensors", stored)
    return Checkpoint.open(folder)


def u8(values):
    return "U8", values.shape, values.tobytes()


def test_every_byte_under_every_scale_of_mx4():
    codes = torch.from_numpy(np.tile(BYTES.reshape(16, 16), (255, 1)))
    scales = torch.arange(255, dtype=torch.uint8).repeat_interleave(16).unsqueeze(1)
    source = Source("MX4", "w", ("s",), (255 * 16, 32), (1, 32))
    found = decode.values(source, codes, (scales,)).view(255, 512)
    each = [(-1 if code & 8 else 1) * float(quantised.E2M1[code & 7]) for byte in range(256) for code in (byte & 15, byte >> 4)]
    with np.errstate(over="ignore"):
        expected = np.stack([np.array(each) * power(byte) for byte in range(255)]).astype(np.float32)
    assert torch.equal(bits(found), bits(expected))
    assert found[134 - 1].isfinite().all()
    assert decode.e8m0(torch.tensor([134, 254, 0], dtype=torch.uint8)).tolist() == [128.0, 2.0**127, 2.0**-127]


def test_every_byte_and_scale_as_sglang_and_torch_have_them():
    pairs = decode.e2m1(torch.from_numpy(BYTES).unsqueeze(1))
    assert torch.equal(bits(pairs), bits(GOLDEN["decode.byte_to_2_values"]))
    every = torch.from_numpy(BYTES)
    for same in (GOLDEN["e8m0.ocp"], GOLDEN["e8m0.sglang_0_5_23"], every.view(torch.float8_e8m0fnu).float()):
        assert torch.equal(bits(decode.e8m0(every)[:255]), bits(same[:255]))
        assert same[255].isnan()
    assert decode.e8m0(every)[255].isnan()
    wrong = GOLDEN["e8m0.sglang_0_5_11"]
    assert wrong[134].isnan(), "the byte that version took for NaN"


def test_the_linear_of_sglang(tmp_path):
    packed, scale = GOLDEN["linear.weight_packed"].numpy(), GOLDEN["linear.weight_scale"].numpy()
    for dtype in ("U8", "F8_E8M0"):
        checkpoint = opened(tmp_path / dtype, {"x.weight": u8(packed), "x.weight_scale": (dtype, scale.shape, scale.tobytes())})
        source = source_of("x.weight", checkpoint.tensors)
        assert source == Source("MX4", "x.weight", ("x.weight_scale",), (48, 128), (1, 32))
        step = Dequantise(source)
        assert torch.equal(bits(step.build(checkpoint)), bits(GOLDEN["linear.dequant_f32"]))
        assert step.names() == ["x.weight", "x.weight_scale"]
        half = torch.empty(48, 128, dtype=torch.bfloat16)
        step.fill(checkpoint, half)
        assert torch.equal(half, GOLDEN["linear.dequant_f32"].bfloat16())
        codes, (found,) = source.codes_and_scales(checkpoint)
        assert torch.equal(codes, GOLDEN["linear.weight_packed"])
        assert torch.equal(found.view(torch.uint8), GOLDEN["linear.weight_scale"])


def test_the_writer_of_these_tests_is_quarks():
    assert quantised.halves(np.arange(16, dtype=np.uint8)[None]).tobytes() == bytes(GOLDEN["pack.bytes_8"].tolist())
    codes = quantised.nearest(GOLDEN["pack.values_16"].numpy(), quantised.E2M1)
    assert quantised.halves(codes[None]).tobytes() == bytes(GOLDEN["pack.bytes_8"].tolist())
    assert quantised.even_scale(GOLDEN["quark_even_scale.amax"].numpy()).tolist() == GOLDEN["quark_even_scale.byte"].tolist()
    scales = torch.tensor([power(byte) for byte in GOLDEN["quark_even_scale.byte"].tolist()])
    assert torch.equal(scales[2:], GOLDEN["quark_even_scale.scale"][2:])  # of a zero group Quark computes 2^-127 and writes 1
    finite = E4M3[~np.isnan(E4M3)]
    assert np.array_equal(E4M3[quantised.to_e4m3(finite)], finite)
    assert np.array_equal(torch.from_numpy(BYTES).view(torch.float8_e4m3fn).float().numpy(), E4M3, equal_nan=True)


@pytest.mark.parametrize("scale", [1.0, 0.3, -2.5, 3e-42, 1e30])
def test_every_byte_of_f8_is_rounded_once(scale):
    source = Source("F8", "w", ("s",), (1, 254), (1, 254))
    finite = BYTES[(BYTES & 127) != 127]
    found = decode.values(source, torch.from_numpy(finite).view(torch.float8_e4m3fn)[None], (torch.tensor([scale]),))
    expected = (E4M3[finite].astype(np.float64) * np.float64(np.float32(scale))).astype(np.float32)
    assert torch.equal(bits(found[0]), bits(expected))


@pytest.mark.parametrize("whole", [1.0, 0.0173, 1e-30])
def test_every_code_under_every_scale_of_nv4_is_rounded_once(whole):
    scale = BYTES[(BYTES & 127) != 127]
    source = Source("NV4", "w", ("s", "t"), (254, 16), (1, 16))
    codes = torch.from_numpy(np.tile(quantised.halves(np.arange(16, dtype=np.uint8)[None]), (254, 1)))
    found = decode.values(source, codes, (torch.from_numpy(scale).view(torch.float8_e4m3fn)[:, None], torch.tensor(whole)))
    values = np.concatenate([quantised.E2M1, -quantised.E2M1]).astype(np.float64)
    expected = (values * E4M3[scale].astype(np.float64)[:, None] * np.float64(np.float32(whole))).astype(np.float32)
    assert torch.equal(bits(found), bits(expected))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 50), st.integers(1, 50), st.integers(1, 400), st.data())
def test_blocks_of_any_size_in_slabs_of_any_size(tmp_path_factory, out, width, rows, columns, slab, data):
    weight = np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=(out, width)).astype(np.float32)
    stored, expected = quantised.f8(weight, "x.weight", (rows, columns), "_scale_inv")
    checkpoint = opened(tmp_path_factory.mktemp("f8"), stored)
    source = source_of("x.weight", checkpoint.tensors, (rows, columns))
    assert source.grid == checkpoint.info("x.weight_scale_inv").shape
    kept, decode._SLAB = decode._SLAB, slab
    try:
        found = Dequantise(source).build(checkpoint)
    finally:
        decode._SLAB = kept
    assert torch.equal(found, torch.from_numpy(expected))


def test_a_scale_for_each_output_or_for_the_whole_in_every_shape(tmp_path):
    codes = np.arange(12, dtype=np.uint8).reshape(3, 4) + 40
    values = E4M3[codes]
    for i, (scale, shape) in enumerate([([2, 3, 4], (3, 1)), ([2, 3, 4], (3,)), ([5], (1,)), ([5], ()), ([5], (1, 1))]):
        for dtype, data in (("F32", np.array(scale, np.float32)),
                            ("BF16", (np.array(scale, np.float32).view(np.uint32) >> 16).astype(np.uint16))):
            checkpoint = opened(tmp_path / f"{i}{dtype}", {"x.weight": ("F8_E4M3", (3, 4), codes.tobytes()),
                                                           "x.weight_scale": (dtype, shape, data.tobytes())})
            found = Dequantise(source_of("x.weight", checkpoint.tensors)).build(checkpoint)
            assert torch.equal(found, torch.from_numpy(values * np.array(scale, np.float32).reshape(-1, 1)))


def test_a_tree_of_recipes_and_plain_tensors_beside(tmp_path):
    weight = np.random.default_rng(0).normal(size=(2, 8, 32)).astype(np.float32)
    stored, first = quantised.mx4(weight[0], "a.weight")
    more, second = quantised.nv4(weight[1], "b.weight")
    stored |= more
    stored["c.weight"], third = quantised.plain(torch.ones(8, 32) / 3, wide=False)
    checkpoint = opened(tmp_path, stored)
    tensors = checkpoint.tensors
    recipe = Stack((Concatenate((Take("a.weight"), Take("c.weight"))), Concatenate((Take("b.weight"), Take("c.weight")))))
    made = dequantised(recipe, tensors)
    assert made.dtype(tensors) == "F32"
    assert made.shape(tensors) == (2, 16, 32)
    a, b = torch.from_numpy(first), torch.from_numpy(second)
    assert torch.equal(made.build(checkpoint), torch.stack([torch.cat([a, third]), torch.cat([b, third])]))
    assert dequantised(Take("c.weight"), tensors) == Take("c.weight")
    assert made.names() == ["a.weight", "a.weight_scale", "c.weight", "b.weight", "b.weight_scale", "b.weight_scale_2"]
    expanded = Expanded(checkpoint)
    assert expanded.names() == ["a.weight", "b.weight", "c.weight"]
    assert torch.equal(expanded.read("a.weight"), a)
    assert expanded.read("c.weight").dtype == torch.bfloat16


MX = {"x.weight": ("U8", (4, 32), bytes(128)), "x.weight_scale": ("U8", (4, 2), bytes([127] * 8))}
NV = {"x.weight": ("U8", (4, 16), bytes(64)), "x.weight_scale": ("F8_E4M3", (4, 2), bytes([56] * 8)),
      "x.weight_scale_2": ("F32", (), np.float32(1).tobytes())}
F8 = {"x.weight": ("F8_E4M3", (4, 6), bytes(24)), "x.weight_scale_inv": ("F32", (2, 2), np.ones(4, np.float32).tobytes())}


def changed(stored, **parts):
    return {**stored, **{name.replace("x_", "x.weight_") if name != "x" else "x.weight": part for name, part in parts.items()}}


def without(stored, end):
    return {name: part for name, part in stored.items() if name != f"x.weight{end}"}


BAD = {
    "no scale": (without(MX, "_scale"), WeightMissing, "x.weight"),
    "no scale of bytes": (without(F8, "_scale_inv"), WeightMissing, "x.weight"),
    "the whole's scale alone": (without(NV, "_scale"), WeightMissing, "x.weight"),
    "no scale of the whole": (without(NV, "_scale_2"), WeightMissing, "x.weight_scale_2"),
    "a scale too short": (changed(MX, x_scale=("U8", (4, 1), bytes(4))), WeightMismatch, "x.weight_scale"),
    "a scale turned round": (changed(MX, x_scale=("U8", (2, 4), bytes(8))), WeightMismatch, "x.weight_scale"),
    "a scale of three dims": (changed(MX, x_scale=("U8", (4, 2, 1), bytes(8))), WeightMismatch, "x.weight_scale"),
    "an odd width": (changed(MX, x=("U8", (4, 33), bytes(132))), WeightMismatch, "x.weight"),
    "an odd width of pairs": (changed(NV, x=("U8", (4, 15), bytes(60))), WeightMismatch, "x.weight"),
    "no rows": (changed(MX, x=("U8", (0, 32), b""), x_scale=("U8", (0, 2), b"")), WeightMismatch, "x.weight"),
    "three dims": (changed(MX, x=("U8", (1, 4, 32), bytes(128))), WeightMismatch, "x.weight"),
    "two numbers for the whole": (changed(NV, x_scale_2=("F32", (2,), bytes(8))), WeightMismatch, "x.weight_scale_2"),
    "blocks that do not fit": (changed(F8, x_scale_inv=("F32", (3, 2), bytes(24))), WeightMismatch, "x.weight_scale_inv"),
    "whole numbers": (changed(F8, x=("I8", (4, 6), bytes(24))), WeightMismatch, "x.weight"),
    "two kinds of scales": ({**F8, "x.weight_scale": ("F32", (1,), bytes(4))}, WeightMismatch, "x.weight"),
    "scales of MX4 for bytes": (changed(F8, x_scale_inv=("U8", (2, 2), bytes(4))), WeightMismatch, "x.weight"),
    "a scale beside plain floats": (changed(MX, x=("BF16", (4, 32), bytes(256))), WeightMismatch, "x.weight_scale"),
}


@pytest.mark.parametrize(("stored", "error", "field"), BAD.values(), ids=BAD)
def test_what_is_no_format_is_refused_from_headers(tmp_path, stored, error, field):
    checkpoint = opened(tmp_path, stored)
    with pytest.raises(error) as caught:
        source_of("x.weight", checkpoint.tensors, (2, 3))
    assert caught.value.field == field
    assert caught.value.file == tmp_path / "model.safetensors"


def test_blocks_of_an_unsaid_size(tmp_path):
    with pytest.raises(ConfigError) as caught:
        source_of("x.weight", opened(tmp_path, F8).tensors)
    assert caught.value.field.endswith("weight_block_size")


NAN, INF = np.float32("nan"), np.float32("inf")
NOT_FINITE = {
    "255": (changed(MX, x_scale=("U8", (4, 2), bytes([127] * 5 + [255, 127, 127]))), "x.weight_scale", "255 at [2, 1]"),
    "e4m3 scale": (changed(NV, x_scale=("F8_E4M3", (4, 2), bytes([56] * 7 + [0x7f]))), "x.weight_scale", "nan at [3, 1]"),
    "scale of the whole": (changed(NV, x_scale_2=("F32", (), INF.tobytes())), "x.weight_scale_2", "inf at []"),
    "float scale": (changed(F8, x_scale_inv=("F32", (2, 2), np.array([1, NAN, 1, 1], np.float32).tobytes())),
                    "x.weight_scale_inv", "nan at [0, 1]"),
    "code": (changed(F8, x=("F8_E4M3", (4, 6), bytes([0] * 20 + [0xff, 0, 0, 0]))), "x.weight", "nan at [3, 2]"),
    "too large": (changed(MX, x=("U8", (4, 32), bytes([0] * 127 + [0x70])), x_scale=("U8", (4, 2), bytes([254] * 8))),
                  "x.weight", "inf at [3, 63]"),
}


@pytest.mark.parametrize(("stored", "field", "found"), NOT_FINITE.values(), ids=NOT_FINITE)
def test_what_is_not_finite_is_refused_by_name(tmp_path, stored, field, found):
    checkpoint = opened(tmp_path, stored)
    source = source_of("x.weight", checkpoint.tensors, (2, 3))
    with pytest.raises(WeightNotFinite) as caught:
        Dequantise(source).build(checkpoint)
    assert (caught.value.field, caught.value.found) == (field, found)
    assert caught.value.file == tmp_path / "model.safetensors"
    if field != "x.weight":
        with pytest.raises(WeightNotFinite):
            source.codes_and_scales(checkpoint)
