"""Sizes and grids equal those of the published processors in every recorded case, and their own function elsewhere."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from media_cases import cut_out, limited, recorded

from glmc.errors import RequestOutOfBounds
from glmc.runtime.media.resize import image_grid, smart_resize, video_grid
from glmc.runtime.media.settings import Sizing

IMAGES, VIDEOS = recorded("image_resize"), recorded("video_resize")


def sizing_of(cases, name):
    config = cases["configs"][name]
    return limited(config["size"], config["factor"])


@pytest.mark.parametrize("name", IMAGES["configs"])
def test_images(name):
    sizing = sizing_of(IMAGES, name)
    cases = [case for case in IMAGES["cases"] if case["config"] == name]
    assert cases
    for case in cases:
        if "error" in case:
            with pytest.raises(RequestOutOfBounds, match="too long"):
                image_grid(case["height"], case["width"], sizing)
            continue
        grid = image_grid(case["height"], case["width"], sizing)
        assert list(smart_resize(2, case["height"], case["width"], sizing)) == case["resized"], case
        assert (list(grid), grid.tokens(2)) == (case["grid_thw"], case["tokens"]), case


@pytest.mark.parametrize("name", VIDEOS["configs"])
def test_videos(name):
    sizing = sizing_of(VIDEOS, name)
    cases = [case for case in VIDEOS["cases"] if case["config"] == name]
    assert cases
    for case in cases:
        sides = case["frames"], case["height"], case["width"]
        if "error" in case:
            with pytest.raises(RequestOutOfBounds, match="too few frames"):
                video_grid(*sides, sizing)
            continue
        grid = video_grid(*sides, sizing)
        assert list(smart_resize(*sides, sizing)) == case["resized"], case
        assert (list(grid), grid.tokens(2), grid.frame_tokens(2)) == (
            case["grid_thw"], case["vision_tokens"], case["tokens_per_temporal_patch"]), case


@pytest.mark.parametrize(("height", "width"), [(0, 5), (5, 0), (-1, 5)])
def test_no_pixels(height, width):
    with pytest.raises(RequestOutOfBounds, match="no pixels"):
        image_grid(height, width, Sizing())


PUBLISHED = {module: cut_out(f"models/{module}", "smart_resize", math=math) for module in (
    "glm4v/image_processing_pil_glm4v", "glm46v/video_processing_glm46v", "glmga/video_processing_glmga")}
side = st.one_of(st.integers(1, 300), st.integers(1, 20000))


@given(st.integers(1, 700), side, side, st.integers(1, 5000), st.integers(1, 10**8), st.sampled_from([1, 2]))
@settings(max_examples=400, deadline=None)
@pytest.mark.parametrize("module", PUBLISHED)
def test_any_size_is_as_transformers_has_it(module, frames, height, width, shortest, longest, expand):
    sizing = Sizing(shortest=shortest, longest=shortest + longest, expand=expand)
    try:
        expected = PUBLISHED[module](frames, height, width, 2, sizing.factor, sizing.shortest, sizing.longest)
    except ValueError:
        with pytest.raises(RequestOutOfBounds):
            smart_resize(frames, height, width, sizing)
    else:
        assert smart_resize(frames, height, width, sizing) == expected
