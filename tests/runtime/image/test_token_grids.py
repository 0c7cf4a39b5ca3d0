"""How many tokens an image is: SGLang's recorded numbers, transformers' grids, and sizes that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from glmc.errors import InternalError, RequestOutOfBounds, UsageError
from glmc.runtime.image.sizes import Grid, Params, extracted, generation_params, target_grids, upsampled

DATA = Path(__file__).parents[2] / "data" / "sglang"
RECORDED = load_file(DATA / "glm_image.safetensors")
INFO = json.loads((DATA / "glm_image_info.json").read_text())
TABLE = RECORDED["t2i_i2i_generation_params.table"].tolist()


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}x{row[1]}")
def test_counts_are_the_recorded_ones(row):
    height, width, token_h, token_w, prev_h, prev_w, *params = row
    # Recorded sizes that are no multiple of 32 were rounded down; here they are refused.
    large, preview = target_grids(height // 32 * 32, width // 32 * 32)
    assert (*large, *preview) == (token_h, token_w, prev_h, prev_w)
    assert generation_params([(1, *large), (1, *preview)], t2i=True) == tuple(params[:4])
    assert generation_params([(1, *large)], t2i=False) == tuple(params[4:])
    assert generation_params([(1, 3, 5), (1, 7, 2), (1, *large)], t2i=False) == tuple(params[4:])


@pytest.mark.parametrize("case", [case for case in INFO["generation_params_edge"].values() if isinstance(case, dict)])
def test_odd_lists_of_grids(case):
    assert list(generation_params(case["grid"], case["t2i"])) == case["result"]


def test_no_grid_is_refused():
    with pytest.raises(UsageError, match="no grid"):
        generation_params([], t2i=True)


def test_grids_are_transformers():
    from transformers import GlmImageProcessor

    draw = torch.Generator().manual_seed(3)
    for height, width in (32 * torch.randint(1, 100, (300, 2), generator=draw)).tolist():
        large, preview = target_grids(height, width)
        assert (*large, *preview) == GlmImageProcessor._get_target_shape(None, height, width)


@pytest.mark.parametrize(("height", "width", "field", "words"), [
    (1000, 704, "height", "the nearest is 992"), (1024, 1008, "width", "the nearest is 1024"), (1, 32, "height", "is 32"),
    (0, 32, "height", "whole number"), (32, -32, "width", "whole number"), (True, 32, "height", "whole number"),
    (32.0, 32, "height", "whole number"), ("32", 32, "height", "whole number"), (None, 32, "height", "whole number")])
def test_what_is_no_size_is_refused(height, width, field, words):
    with pytest.raises(UsageError) as caught:
        target_grids(height, width)
    assert caught.value.field == field
    assert words in str(caught.value)


@pytest.mark.parametrize(("height", "width"), [(1 << 40, 32), (32, 32 * 257)])
def test_huge_and_long_images_are_refused(height, width):
    with pytest.raises(RequestOutOfBounds):
        target_grids(height, width)


def test_extraction_and_upsampling_are_the_recorded_ones():
    whole = RECORDED["extract.in"][0, 7:]
    found = extracted(whole, Params(18, 5, 3, 4))
    assert torch.equal(found.flatten(), RECORDED["extract.len7_off5_n12"])
    larger = upsampled(RECORDED["upsample.in_3x4"].view(3, 4))
    assert larger.shape == (6, 8)
    assert torch.equal(larger.flatten(), RECORDED["upsample.out"][0])


def test_too_few_tokens_are_no_image():
    with pytest.raises(InternalError, match="fewer tokens"):
        extracted(torch.arange(993), Params(1281, 0, 32, 32))


def test_a_grid_counts_its_tokens():
    assert Grid(5, 7).tokens == 35
