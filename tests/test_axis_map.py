"""The axis of each lane: SGLang's own maps, what holds for all sections, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from glmc.axis_map import KEYS, LAYOUTS, axis_map, layout, notes, sections
from glmc.errors import ConfigError, UnknownName
from glmc.kernels.pick_lanes import cpu as pick_lanes

DATA = Path(__file__).parent / "data" / "sglang"
MAPS = load_file(DATA / "mrope_axis_map.safetensors")
ROTATED = load_file(DATA / "mrope_rotate.safetensors")
CONFIGS = {"partial_h128_r64_s8_12_12": ((8, 12, 12), 64), "full_h128_r128_s16_24_24": ((16, 24, 24), 128)}
SECTIONS = st.tuples(*[st.integers(0, 40)] * 3).filter(any)
GLM, QWEN = {KEYS[0]: True, KEYS[1]: True}, {KEYS[0]: True}


@pytest.mark.parametrize("case", [k for k in MAPS if not k.endswith("section")])
def test_the_maps_are_sglangs(case):
    exact, given_ = MAPS[case].tolist(), MAPS[f"{case}.effective_section"].tolist()
    assert list(axis_map(given_, len(exact), "glm_interleaved")) == exact
    asked = [int(n) for n in case.split("sec_")[1].split(".")[0].split("_")]
    if asked != given_:
        with pytest.raises(ConfigError, match="mrope_section"):  # SGLang rescales; we refuse
            sections({"mrope_section": asked}, len(exact), (8, 12, 12))


@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize("config", CONFIGS)
def test_rotated_heads_are_sglangs(config, order):
    section, width = CONFIGS[config]
    positions = ROTATED["positions.random"]
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, width, 2).float() / width)
    angles = pick_lanes.run(positions[..., None].float() * frequencies, axis_map(section, width // 2, order))
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    if order == "glm_interleaved":
        torch.testing.assert_close(cos[:, 0], ROTATED[f"{config}.random.{order}.cos"], atol=1e-5, rtol=0)
        torch.testing.assert_close(sin[:, 0], ROTATED[f"{config}.random.{order}.sin"], atol=1e-5, rtol=0)
    for pairing in ("half", "gptj"):
        for name in "qk":
            x = ROTATED[f"{config}.random.{name}_in"].unflatten(-1, (-1, 128))
            turn, keep = x[..., :width], x[..., width:]
            first, second = turn.chunk(2, -1) if pairing == "half" else (turn[..., 0::2], turn[..., 1::2])
            turned = first * cos - second * sin, second * cos + first * sin
            turned = torch.cat(turned, -1) if pairing == "half" else torch.stack(turned, -1).flatten(-2)
            exact = ROTATED[f"{config}.random.{order}.{pairing}.{name}_out"]
            torch.testing.assert_close(torch.cat([turned, keep], -1).flatten(-2), exact, atol=1e-5, rtol=0)


def test_qwens_map_does_not_honour_sections_with_little_time():
    counts = torch.tensor(axis_map((8, 12, 12), 32, "qwen3vl_interleaved")).bincount().tolist()
    assert counts == [11, 11, 10]


@pytest.mark.parametrize("section", [(24, 20, 20), (11, 11, 10)])
def test_qwens_and_glms_maps_coincide_where_time_is_largest(section):
    glm = axis_map(section, sum(section), "glm_interleaved")
    assert glm == axis_map(section, sum(section), "qwen3vl_interleaved")
    if section[0] == 24:
        assert glm == (0, 1, 2) * 20 + (0,) * 4


@given(SECTIONS)
def test_glms_map_is_a_permutation_of_the_chunked_one(section):
    glm, chunked = (axis_map(section, sum(section), order) for order in ("glm_interleaved", "chunked"))
    assert tuple(sorted(glm)) == chunked
    assert tuple(chunked.count(axis) for axis in range(3)) == section
    assert list(chunked) == sorted(chunked)
    level = 3 * min(section)
    assert glm[:level] == (0, 1, 2) * min(section)


@given(st.integers(1, 40))
def test_equal_sections_simply_alternate(size):
    for order in LAYOUTS[1:]:
        assert axis_map((size,) * 3, 3 * size, order) == (0, 1, 2) * size


@given(SECTIONS)
def test_qwens_map_gives_height_and_width_no_lane_beyond_their_sections(section):
    qwen = axis_map(section, sum(section), "qwen3vl_interleaved")
    assert all(axis in (0, i % 3) for i, axis in enumerate(qwen))
    for axis in (1, 2):
        assert qwen.count(axis) == min(section[axis], len(range(axis, len(qwen), 3)))


@pytest.mark.parametrize(("keys", "asked"), [
    ({}, "chunked"), (QWEN, "qwen3vl_interleaved"), (GLM, "glm_interleaved"), ({KEYS[1]: True}, "chunked"),
    ({KEYS[0]: False, KEYS[1]: True}, "chunked"), ({KEYS[0]: False, KEYS[1]: False}, "chunked"),
])
def test_the_keys_choose_the_layout(keys, asked):
    assert layout({"rope_theta": 10000.0, **keys}) == asked
    assert bool(notes(asked)) == (asked != "chunked")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", [None, 1, "true", [True]])
def test_a_key_that_is_no_truth_is_refused(key, value):
    with pytest.raises(ConfigError, match=rf"field: {key}(\n|$)"):
        layout({**GLM, key: value})


@pytest.mark.parametrize("found", [
    None, "8,12,12", 32, [], [32], [8, 24], [8, 12, 6, 6], [8, 12, 12.0], [8, 12, "12"], [True, 19, 12], [-8, 20, 20],
    [0, 0, 0], [8, 12, 11], [16, 24, 24], {"t": 8},
])
def test_sections_that_do_not_fit_are_refused(found):
    with pytest.raises(ConfigError, match="field: mrope_section\n"):
        sections({"mrope_section": found}, 32, (8, 12, 12))
    for order in LAYOUTS:
        with pytest.raises(ConfigError, match="field: mrope_section\n"):
            axis_map(found, 32, order)


def test_missing_sections_are_the_classes_default_and_must_fit_too():
    assert sections({}, 32, (8, 12, 12)) == (8, 12, 12)
    assert sections({"mrope_section": [0, 32, 0]}, 32, (8, 12, 12)) == (0, 32, 0)
    with pytest.raises(ConfigError, match="field: mrope_section\n"):
        sections({}, 64, (8, 12, 12))
    with pytest.raises(ConfigError, match="field: mrope_section\n"):
        axis_map((0, 0, 0), 0, "chunked")


def test_an_unknown_layout_is_refused():
    with pytest.raises(UnknownName, match="spiral"):
        axis_map((8, 12, 12), 32, "spiral")
