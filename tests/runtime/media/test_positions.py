"""Three rows of positions, as transformers has them, and a named error for what it takes wrongly."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from media_cases import TOKENS, cut_out, recorded

from glmc.errors import UsageError
from glmc.runtime.media.layout import token_types
from glmc.runtime.media.positions import batch_positions, positions

RECORDED = recorded("rope_index")
ERRORS = {case["name"]: case for case in RECORDED["errors"]}


@pytest.mark.parametrize("case", RECORDED["cases"], ids=lambda case: case["name"])
def test_recorded_rows(case):
    types = token_types(case["input_ids"], TOKENS)
    assert types.tolist() == case["mm_token_type_ids"]
    found, delta = positions(types, case["image_grid_thw"], case["video_grid_thw"], 2)
    assert found.dtype == np.int64
    assert (found.tolist(), delta) == (case["position_ids"], case["rope_delta"])
    assert [len(types) + k + delta for k in range(4)] == case["decode_position_of_kth_new_token"]


def test_the_recorded_batch_with_padding_on_the_left():
    case = RECORDED["batches"][0]
    mask = np.array(case["attention_mask"])
    types = np.array([token_types(row, TOKENS) for row in case["input_ids"]])
    found, delta = batch_positions(types, mask, case["image_grid_thw"], case["video_grid_thw"], 2)
    assert (found.tolist(), delta.tolist()) == (case["position_ids"], case["rope_delta"])
    following = mask.sum(1) + delta
    assert [[[int(p)] for p in following]] * 3 == case["decode_step_position_ids_with_mask"]


def test_images_need_no_text_between_them():
    """transformers fails here; the grids say where one image ends, and vLLM goes by them too."""
    case = ERRORS["adjacent_images_without_separator"]
    found, delta = positions(token_types(case["input_ids"], TOKENS), case["image_grid_thw"], [], 2)
    assert found[:, 2:8].tolist() == [[2] * 6, [2, 2, 2, 3, 3, 3], [2, 3, 4, 2, 3, 4]]
    assert found[:, 8:12].tolist() == [[5] * 4, [5, 5, 6, 6], [5, 6, 5, 6]]
    assert (found[:, 12:].tolist(), delta) == ([[7, 8]] * 3, -5)


@pytest.mark.parametrize(("name", "expected", "tokens"), [
    ("grid_count_too_small", "4 for 1", 8), ("placeholder_count_mismatch", "4 for 1", 5)])
def test_recorded_faults_are_named_with_both_counts(name, expected, tokens):
    case = ERRORS[name]
    with pytest.raises(UsageError, match="tokens of its images") as fault:
        positions(token_types(case["input_ids"], TOKENS), case["image_grid_thw"], [], 2)
    assert fault.value.found == tokens
    assert expected in fault.value.expected


@pytest.mark.parametrize(("types", "images", "videos", "field"), [
    ([0, 1], [], [], "image"), ([0, 0], [(1, 2, 2)], [], "image"), ([0, 2, 2], [], [(1, 2, 2)], "video"),
    ([1, 0, 1], [(1, 2, 4)], [], "image 0"), ([1, 0, 1, 1], [(1, 2, 2), (1, 2, 4)], [], None),
    ([1, 1, 0, 1], [(1, 2, 2), (1, 2, 4)], [], "image 1"), ([1, 1], [(2, 2, 2)], [], "image 0"),
    ([1], [(1, 3, 2)], [], "image 0"), ([2], [], [(0, 2, 2)], "video 0"), ([3], [], [], "token types")])
def test_what_does_not_fit_is_named(types, images, videos, field):
    if field is None:
        assert positions(types, images, videos, 2)[1] == 0
        return
    with pytest.raises(UsageError) as fault:
        positions(types, images, videos, 2)
    assert fault.value.field == field


def test_no_text_at_all():
    found, delta = positions([], [], [], 2)
    assert (found.shape, delta) == ((3, 0), 0)


grid = st.tuples(st.integers(1, 4), st.integers(1, 5)).map(lambda g: (2 * g[0], 2 * g[1]))
piece = st.one_of(st.integers(1, 6), st.tuples(st.just("image"), st.just(1), grid), st.tuples(
    st.just("video"), st.integers(1, 3), grid))


def laid_out(pieces):
    """Token types and grids of a row whose media have text around them, as a template has it."""
    types, grids = [0], {"image": [], "video": []}
    for item in pieces:
        if isinstance(item, int):
            types += [0] * item
            continue
        kind, t, (h, w) = item
        grids[kind].append([t, h, w])
        types += ([1 if kind == "image" else 2] * (h * w // 4) + [0, 0, 0]) * t
    return types, grids


INNER = cut_out("models/glm4v/modeling_glm4v", "get_vision_position_ids", torch=torch)
OUTER = cut_out("models/glm4v/modeling_glm4v", "get_rope_index", torch=torch, itertools=itertools)
MODEL = SimpleNamespace(config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2)))
MODEL.get_vision_position_ids = lambda *a, **k: INNER(MODEL, *a, **k)


@given(st.lists(st.lists(piece, max_size=5), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_any_batch_is_as_transformers_has_it_and_each_row_as_alone(batch):
    rows = [laid_out(pieces) for pieces in batch]
    width = max(len(types) for types, _ in rows)
    mask = np.array([[0] * (width - len(types)) + [1] * len(types) for types, _ in rows])
    types = np.array([[0] * (width - len(types)) + types for types, _ in rows])
    images, videos = ([g for _, grids in rows for g in grids[kind]] for kind in ("image", "video"))
    found, delta = batch_positions(types, mask, images, videos, 2)
    expected, deltas = OUTER(MODEL, torch.tensor(types), torch.tensor(types), torch.tensor(images).long().reshape(-1, 3),
                             torch.tensor(videos).long().reshape(-1, 3), torch.tensor(mask))
    assert (found.tolist(), delta.tolist()) == (expected.tolist(), deltas[:, 0].tolist())
    assert (delta <= 0).all()
    for number, (alone, grids) in enumerate(rows):
        single, its_delta = positions(alone, grids["image"], grids["video"], 2)
        assert single.tolist() == found[:, number, width - len(alone):].tolist()
        assert its_delta == delta[number]
