"""A video's metadata is checked where it enters, and a wrong value is an error that names its key."""

import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glmc.errors import UsageError
from glmc.runtime.media.metadata import VideoMetadata, one_record_each

GOOD = {"total_num_frames": 100, "fps": 25.0, "duration": 4.0, "width": 640, "height": 480, "video_backend": "pyav",
        "frames_indices": [0, 5, 10], "do_sample_frames": False}


def test_a_good_record():
    made = VideoMetadata.parse({**GOOD, "timestamps": [0.0], "nb": 3})
    assert (made.total_num_frames, made.fps, made.duration, made.frames_indices) == (100, 25.0, 4.0, (0, 5, 10))
    assert made.unknown == {"timestamps": [0.0], "nb": 3}
    assert VideoMetadata.parse(made) is made


def test_numbers_of_numpy_and_of_decoders():
    made = VideoMetadata.parse({"total_num_frames": np.int64(9), "fps": Fraction(30000, 1001), "duration": np.float32(0.5),
                                "frames_indices": np.arange(3)})
    assert (made.total_num_frames, made.fps, made.duration, made.frames_indices) == (9, 30000 / 1001, 0.5, (0, 1, 2))
    assert type(made.total_num_frames) is int
    assert type(made.fps) is float


@pytest.mark.parametrize(("key", "value"), [
    ("total_num_frames", None), ("total_num_frames", ...), ("total_num_frames", -1), ("total_num_frames", 3.0),
    ("total_num_frames", True), ("total_num_frames", "9"), ("fps", "25"), ("fps", True), ("fps", [25]), ("duration", -0.1),
    ("duration", float("nan")), ("duration", float("inf")), ("duration", "4 s"), ("width", 0), ("height", 2.5),
    ("video_backend", 3), ("frames_indices", [0, 100]), ("frames_indices", [-1]), ("frames_indices", [0.5]),
    ("frames_indices", 5), ("frames_indices", [[0]]), ("frames_indices", [True]), ("do_sample_frames", 1),
    ("do_sample_frames", "no"),
])
def test_a_wrong_value_names_its_key(key, value):
    record = {k: v for k, v in {**GOOD, key: value}.items() if v is not ...}
    with pytest.raises(UsageError) as fault:
        VideoMetadata.parse(record)
    assert fault.value.field == key


def test_what_is_no_mapping():
    with pytest.raises(UsageError, match="mapping"):
        VideoMetadata.parse([100, 25.0])


@pytest.mark.parametrize("fps", [0, 0.0, -25, float("nan"), float("inf"), -float("inf"), 10**400, None, ...])
def test_a_rate_that_cannot_be_is_unknown(fps):
    record = {k: v for k, v in {"total_num_frames": 100, "fps": fps}.items() if v is not ...}
    made = VideoMetadata.parse({**record, "duration": 4})
    assert made.fps is None
    assert made.known_rate() == 25.0
    for duration in (None, 0, 0.0):
        with pytest.raises(UsageError, match="rate is unknown") as fault:
            VideoMetadata.parse({**record, "duration": duration}).known_rate()
        assert fault.value.field == "fps"
        if fps not in (None, ...):
            assert f"fps {fps}" in fault.value.found


def test_the_record_itself_takes_no_impossible_rate():
    with pytest.raises(UsageError, match="fps"):
        VideoMetadata(10, fps=0.0)


def test_validation_holds_without_assertions():
    code = ("import sys; from glmc.errors import UsageError; from glmc.runtime.media.metadata import VideoMetadata\n"
            "try: VideoMetadata.parse({'total_num_frames': 5, 'frames_indices': [9]})\n"
            "except UsageError as fault: print(fault.field, sys.flags.optimize, 'torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["frames_indices", "1", "False"], done.stderr


def test_a_record_for_every_video():
    whole = {"total_num_frames": 4, "fps": 2.0}
    chosen = {"total_num_frames": 40, "fps": 2.0, "frames_indices": [0, 20]}
    first, second, third = one_record_each([4, 2, 3], [whole, chosen, None])
    assert (first.do_sample_frames, first.frames_indices) == (True, None)
    assert (second.do_sample_frames, second.frames_indices) == (False, (0, 20))
    assert (third.do_sample_frames, third.frames_indices, third.fps, third.total_num_frames) == (False, (0, 1, 2), None, 3)
    assert one_record_each([2], None)[0].frames_indices == (0, 1)


def test_each_record_chooses_for_itself():
    made = one_record_each([4, 4], [{"total_num_frames": 4, "do_sample_frames": choose} for choose in (False, True)])
    assert [m.do_sample_frames for m in made] == [False, True]


@pytest.mark.parametrize(("frames", "records", "field"), [
    ([3, 3], [GOOD], "video_metadata"), ([3], [GOOD, GOOD], "video_metadata"), ([3], [], "video_metadata"),
    ([4], [GOOD], "frames_indices"), ([16], [{"total_num_frames": 46, "do_sample_frames": True}], "do_sample_frames"),
    ([16], [{"total_num_frames": 46}], "frames_indices"),
])
def test_videos_and_records_out_of_step(frames, records, field):
    with pytest.raises(UsageError) as fault:
        one_record_each(frames, records)
    assert fault.value.field == field


values = st.one_of(st.sampled_from([None, True, "25", ""]), st.integers(-3, 300), st.floats(), st.lists(st.integers()))


@given(st.fixed_dictionaries({}, optional=dict.fromkeys([*GOOD, "other"], values)))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_mapping_is_a_record_or_a_named_error(record):
    try:
        made = VideoMetadata.parse(record)
    except UsageError as fault:
        named = fault.field
    else:
        named = "total_num_frames"
        assert made.rate is None or 0 < made.rate < float("inf")
        assert set(record) - set(GOOD) <= set(made.unknown)
    assert named in GOOD
