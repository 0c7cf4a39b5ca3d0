"""The text that stands for images and videos equals the published processors', byte for byte; vLLM's times on request."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from media_cases import TOKENS, cut_out, of, recorded

from glmc.errors import UsageError
from glmc.runtime.media.layout import IMAGE, VIDEO, expand, image_text, stamps, token_types, video_text
from glmc.runtime.media.metadata import VideoMetadata
from glmc.runtime.media.resize import Grid
from glmc.runtime.media.sampling import Clip, choose

CASES = recorded("video_text_layout")["cases"]
SAMPLED = [case for case in CASES if "total_num_frames" in case]
GIVEN = {case["note"].split(":")[0].split(",")[0]: case for case in CASES if "frames_indices" in case}


def text_of(case, clip, like="transformers"):
    """The times and the text of a recorded case, <N> for its image tokens."""
    settings, grid = of(case["model"]), Grid(*case["grid_thw"])
    times = stamps(clip, settings, like)
    return times, video_text(grid, 2, times).replace(IMAGE * grid.frame_tokens(2), "<N>")


@pytest.mark.parametrize("case", SAMPLED, ids=lambda case: f"{case['model']}-{case['total_num_frames']}")
def test_recorded_videos(case):
    record = {k: case[k] for k in ("total_num_frames", "fps", "duration")}
    clip = choose(VideoMetadata.parse(record), of(case["model"]))
    assert len(clip.indices) == case["num_sampled"]
    times, text = text_of(case, clip)
    assert times == case["stamp_strings"]
    if case["expansion"] is not None:
        assert text == case["expansion"]
    else:
        assert text.startswith(case["expansion_head"])
        assert text.endswith(case["expansion_tail"])
    assert text_of(case, clip, "vllm")[0] == case["vllm_0_33_stamp_strings"]


@pytest.mark.parametrize("note", ["5 pre-sampled frames", "fps missing -> 24"])
def test_recorded_videos_of_chosen_frames(note):
    case = GIVEN[note]
    indices = case["frames_indices"]
    record = {"total_num_frames": 1000, "fps": case["fps"], "frames_indices": indices, "do_sample_frames": False}
    clip = choose(VideoMetadata.parse(record), of(case["model"]))
    assert text_of(case, clip)[1] == case["expansion"]


@pytest.mark.parametrize("note", ["fewer stamps than grid_t", "more stamps than grid_t"])
def test_times_that_do_not_fit_are_refused(note):
    """transformers repeats or drops times until they fit, and so gives frames the times of others."""
    case = GIVEN[note]
    with pytest.raises(UsageError, match="as many times") as fault:
        text_of(case, Clip(tuple(case["frames_indices"]), case["fps"]))
    assert (fault.value.expected, fault.value.found) == (case["grid_thw"][0], (len(case["frames_indices"]) + 1) // 2)


def test_nobody_elses_times():
    with pytest.raises(UsageError, match="stamps"):
        stamps(Clip((0, 1), 2.0), of("glm46v"), "sglang")


def test_a_conversation():
    text = f"[gMASK]<|user|>{IMAGE}<|begin_of_video|>{VIDEO}<|end_of_video|>and {IMAGE}?"
    found = expand(text, [image_text(Grid(1, 4, 4), 2), image_text(Grid(1, 2, 2), 2)],
                   [video_text(Grid(2, 2, 2), 2, ["0", "1"])])
    assert found == (f"[gMASK]<|user|>{IMAGE * 4}<|begin_of_video|><|begin_of_image|>{IMAGE}<|end_of_image|>0"
                     f"<|begin_of_image|>{IMAGE}<|end_of_image|>1<|end_of_video|>and {IMAGE}?")


@pytest.mark.parametrize(("images", "videos", "field"), [(1, 0, "video"), (0, 1, "image"), (2, 1, "image"), (1, 3, "video")])
def test_placeholders_and_media_out_of_step(images, videos, field):
    with pytest.raises(UsageError) as fault:
        expand(f"{IMAGE} and {VIDEO}", ["x"] * images, ["y"] * videos)
    assert fault.value.field == field
    assert fault.value.found == "1 placeholders"
    assert str({"image": images, "video": videos}[field]) in fault.value.expected


TYPES = cut_out("models/glm46v/processing_glm46v", "create_mm_token_type_ids", np=np)
PROCESSOR = SimpleNamespace(video_start_id=TOKENS.begin_video, video_end_id=TOKENS.end_video, image_token_id=TOKENS.image)


@given(st.lists(st.sampled_from([TOKENS.image, TOKENS.video, TOKENS.begin_video, TOKENS.end_video, 7]), min_size=1))
@settings(max_examples=200, deadline=None)
def test_any_ids_have_the_types_transformers_gives(ids):
    assert [token_types(ids, TOKENS).tolist()] == TYPES(PROCESSOR, [ids])


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20), st.floats(0.1, 240), st.sampled_from(["glm4v", "glm46v"]))
@settings(max_examples=150, deadline=None)
def test_any_frames_have_the_text_transformers_gives(indices, rate, model):
    module = f"models/{model}/processing_{model}"
    grid = Grid(-(-len(indices) // 2), 4, 4)
    processor = SimpleNamespace(video_processor=SimpleNamespace(merge_size=2), image_token=IMAGE)
    frame = cut_out(module, "replace_frame_token_id")
    processor.replace_frame_token_id = lambda *a, **k: frame(processor, *a, **k)
    metadata = SimpleNamespace(fps=rate, timestamps=[i / rate for i in indices])
    expected = cut_out(module, "replace_video_token")(
        processor, {"video_grid_thw": [np.array(grid)], "video_metadata": [metadata]}, 0)
    assert video_text(grid, 2, stamps(Clip(tuple(indices), rate), of(model))) == expected
