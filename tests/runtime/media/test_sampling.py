"""The frames that are chosen are those of the published samplers; where these fail or choose none, ours are stated here."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from media_cases import cut_out, of, recorded

from glmc.errors import RequestOutOfBounds, UsageError
from glmc.runtime.media.metadata import VideoMetadata
from glmc.runtime.media.sampling import choose, most_frames

SAMPLERS = ("glm4v", "glm46v", "glmga")
CASES = recorded("video_sampling")["cases"]


def chosen(sampler, case, **changes):
    record = {k: case[k] for k in ("total_num_frames", "fps", "duration")} | changes
    fps = None if sampler == "glm46v" else case.get("target_fps")
    return list(choose(VideoMetadata.parse(record), of(sampler), fps).indices)


def sound(case, sampler):
    """Whether the published sampler gives a choice: at least one frame, at a rate that can be one."""
    return case["fps"] > 0 and bool(case["indices"][sampler])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_recorded_choices(sampler):
    cases = [case for case in CASES if sound(case, sampler)]
    assert len(cases) > 170
    for case in cases:
        assert chosen(sampler, case) == case["indices"][sampler], case


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_where_the_published_samplers_fail(sampler):
    """A rate that cannot be one is frames / duration; a video shorter than one step gives its first frame, twice."""
    cases = [case for case in CASES if not sound(case, sampler)]
    assert cases
    for case in cases:
        expected = [0, 0] if case["fps"] > 0 else chosen(sampler, case, fps=case["total_num_frames"] / case["duration"])
        assert chosen(sampler, case) == expected
        assert choose(VideoMetadata.parse({k: case[k] for k in ("total_num_frames", "fps", "duration")}), of(sampler)).notes


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("duration", [1e-9, 0.05, 0.16, 0.4, 0.49])
def test_never_nothing(sampler, duration):
    indices = choose(VideoMetadata(3, fps=30.0, duration=duration), of(sampler)).indices
    assert len(indices) >= 2
    assert indices[0] == 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_cannot_be_chosen_from(sampler):
    with pytest.raises(RequestOutOfBounds, match="no frames") as fault:
        choose(VideoMetadata(0, fps=25.0, duration=4.0), of(sampler))
    assert fault.value.field == "total_num_frames"
    for record in ({"total_num_frames": 9, "fps": 0.0}, {"total_num_frames": 9}):
        with pytest.raises(UsageError, match="rate is unknown"):
            choose(VideoMetadata.parse(record), of(sampler))
    with pytest.raises(UsageError, match="absurd"):
        choose(VideoMetadata(9, fps=5e-324), of(sampler))


def test_frames_that_are_chosen_already_are_left_alone():
    clip = choose(VideoMetadata(100, fps=25.0, frames_indices=(0, 5, 5), do_sample_frames=False), of("glm46v"))
    assert (clip.indices, clip.rate, clip.notes, clip.positions) == ((0, 5, 5), 25.0, (), (0, 1, 2))
    clip = choose(VideoMetadata(3, do_sample_frames=False), of("glm46v"))
    assert (clip.indices, clip.rate) == ((0, 1, 2), 24.0)
    assert "24" in clip.notes[0]
    with pytest.raises(RequestOutOfBounds, match="no frames"):
        choose(VideoMetadata(0, do_sample_frames=False), of("glm46v"))


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 1001, "2", True])
def test_a_wanted_rate_that_cannot_be(fps):
    with pytest.raises(UsageError, match="frames a second"):
        choose(VideoMetadata(9, fps=25.0), of("glmga"), fps)


def test_a_rate_is_not_taken_and_ignored():
    with pytest.raises(UsageError, match="by the video's length"):
        choose(VideoMetadata(9, fps=25.0), of("glm46v"), 2)


def test_huge_files_take_no_time():
    for sampler in SAMPLERS:
        assert len(choose(VideoMetadata(10**15, fps=60.0), of(sampler)).indices) <= most_frames(of(sampler))


def test_the_most_frames():
    assert [most_frames(of(sampler)) for sampler in SAMPLERS] == [600, 640, 640]
    assert most_frames(of("glm4v"), fps=0.5) == 150
    assert most_frames(of("glmga", max_frames=7)) == 8


def published_sampler(name):
    """transformers' own sample_frames with the class's numbers."""
    function = cut_out(f"models/{name}/video_processing_{name}", "sample_frames", np=np, math=math)
    stand_in = SimpleNamespace(fps=2, max_duration=300, max_frames=640, temporal_patch_size=2)
    return lambda record, fps: function(stand_in, SimpleNamespace(**record), fps).tolist()


PUBLISHED = {name: published_sampler(name) for name in SAMPLERS}
rates = st.one_of(st.sampled_from([23.976, 24.0, 25.0, 29.97, 30000 / 1001, 59.94, 60.0]), st.floats(0.05, 240))


@given(st.integers(1, 20000), rates, st.one_of(st.none(), st.floats(0.6, 6000)), st.one_of(st.none(), st.floats(0.1, 8)))
@settings(max_examples=150, deadline=None)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_video_is_sampled_as_transformers_does(sampler, total, fps, duration, wanted):
    record = {"total_num_frames": total, "fps": fps, "duration": duration}
    wanted = None if sampler == "glm46v" else wanted
    expected = PUBLISHED[sampler](record, wanted) or [0, 0]
    found = choose(VideoMetadata.parse(record), of(sampler), wanted)
    assert list(found.indices) == list(found.positions) == expected
    assert len(found.indices) <= most_frames(of(sampler), wanted)
