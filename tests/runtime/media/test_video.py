"""Videos: a record that is known before decoding, the frames that were asked for, and a name for what is broken."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys

import av
import numpy as np
import pytest
import torch
from clips import BY_FORMAT, clip, picture, sound
from PIL import Image
from transformers.video_utils import read_video_pyav

from glmc.errors import MediaError, UsageError
from glmc.runtime.media import container
from glmc.runtime.media.metadata import VideoMetadata
from glmc.runtime.media.patches import resize_frame
from glmc.runtime.media.video import open_video


def decoded(data: bytes) -> list[np.ndarray]:
    """All frames, as PyAV gives them one after the other."""
    with av.open(io.BytesIO(data)) as file:
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]


def still(form: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (64, 48), (9, 8, 7)).save(stream, form)
    return stream.getvalue()


@pytest.mark.parametrize("name", BY_FORMAT)
def test_the_record_and_the_frames_of_a_file(name):
    data = clip(**BY_FORMAT[name])
    video, every = open_video(data), decoded(data)
    record = video.metadata
    assert (record.total_num_frames, record.fps, record.duration, record.do_sample_frames) == (20, 25.0, 0.8, True)
    assert (video.count, video.height, video.width) == (20, *every[0].shape[:2]) == (20, record.height, record.width)
    for positions in (range(20), [0, 19], [3, 3, 7, 8, 8], [19]):
        found = video.frames(positions, video.height, video.width).numpy()
        assert np.array_equal(found, np.stack([every[i] for i in positions]))


@pytest.mark.parametrize("name", ["mp4", "h264 in mp4", "h264 in matroska", "vp9 in webm"])
def test_far_frames_are_sought_and_are_the_same(name, monkeypatch):
    data = clip(100, gop=12, **BY_FORMAT[name])
    video, every = open_video(data), decoded(data)
    for positions in ([0, 40, 41, 99], [99], [95, 96], range(5, 100, 23), [11, 12, 13, 47, 48, 95]):
        found = video.frames(positions, 48, 64).numpy()
        assert np.array_equal(found, np.stack([every[i] for i in positions]))
    passed = []
    plain = container._decoded
    monkeypatch.setattr(container, "_decoded", lambda *a: (passed.append(1) or f for f in plain(*a)))
    video.frames([99], 48, 64)
    assert len(passed) < 50


def test_the_frames_are_those_of_transformers():
    data = clip(codec="libx264")
    want, record = read_video_pyav(io.BytesIO(data), lambda metadata: [0, 7, 19])
    video = open_video(data)
    assert np.array_equal(video.frames([0, 7, 19], 48, 64).numpy(), want)
    assert (video.metadata.fps, video.metadata.duration) == (record.fps, record.duration)


def test_frames_are_resized_as_they_come():
    video = open_video(clip())
    whole = video.frames([2, 9], 48, 64)
    assert torch.equal(video.frames([2, 9], 28, 56), torch.stack([resize_frame(f, 28, 56) for f in whole]))


def test_a_varying_rate_is_the_mean_and_frames_are_numbered_as_shown():
    times = [0, 1, 2, 10, 11, 30, 31]
    data = clip(7, form="matroska", codec="ffv1", reordered=0, times=times)
    video = open_video(data)
    assert video.count == 7
    assert video.metadata.duration == pytest.approx(3.14)  # the last frame's own 40 ms included
    assert video.metadata.fps == pytest.approx(7 / 3.14)
    assert np.array_equal(video.frames([5], 48, 64).numpy()[0], decoded(data)[5])


def test_one_frame():
    video = open_video(clip(1, reordered=0))
    assert (video.count, video.metadata.fps, video.metadata.duration) == (1, 25.0, 0.04)
    assert video.frames([0, 0], 28, 28).shape == (2, 28, 28, 3)


def test_without_times_the_rate_is_unknown_until_it_is_given():
    data = clip(form="h264", codec="libx264")
    video = open_video(data)
    assert (video.count, video.metadata.rate, video.metadata.duration) == (20, None, None)
    assert open_video(data, {"fps": 10}).metadata.rate == 10.0
    assert np.array_equal(video.frames([13], 48, 64).numpy()[0], decoded(data)[13])


@pytest.mark.parametrize("form", ["mp4", "matroska"])
@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_a_turned_video_stands_upright(rotation, form):
    data = clip(rotation=rotation, form=form)
    video = open_video(data)
    assert (video.height, video.width) == ((48, 64) if rotation == 180 else (64, 48))
    want = np.rot90(decoded(data)[4], rotation // 90)
    assert np.array_equal(video.frames([4], video.height, video.width).numpy()[0], want)


def test_a_phone_held_upright_is_turned_clockwise():
    data = clip(rotation=-90)
    matrix = data.index(b"tkhd") + 4 + 40
    numbers = np.frombuffer(data[matrix:matrix + 20], ">i4") / 65536
    assert numbers.tolist()[:5] == [0, 1, 0, -1, 0]  # what phones write
    frame = open_video(data).frames([4], 64, 48).numpy()[0]
    assert np.array_equal(frame, np.rot90(decoded(data)[4], -1))


def test_a_quarter_of_a_turn_is_the_least_that_is_done():
    video = open_video(clip(rotation=30))
    assert (video.height, video.width) == (48, 64)
    assert any("turned" in note for note in video.notes)


@pytest.mark.parametrize("cut", [0.1, 0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", ["h264 in mp4", "h264 in matroska", "mpegts"])
def test_of_a_file_that_was_cut_the_frames_that_are_there_are_counted(name, cut, tmp_path):
    asked = BY_FORMAT[name] | ({"file": tmp_path / "x.mp4"} if "mp4" in name else {})
    data = clip(60, **asked)
    part = data[:int(len(data) * cut)]
    try:
        video = open_video(part)
    except MediaError:
        assert cut == 0.1  # the header itself
        return
    assert 0 < video.count <= 60
    assert video.metadata.total_num_frames == video.count
    assert video.frames(range(video.count), 28, 28).shape[0] == video.count
    if "mp4" in name and cut < 0.99:
        assert any("promises 60" in note for note in video.notes)


def test_a_frame_that_is_damaged_is_named_or_noted():
    """Bytes changed at random never give another error than our own, and mostly some answer."""
    files = [clip(30, **BY_FORMAT[name]) for name in ("h264 in mp4", "h264 in matroska", "avi", "mpegts")]
    dice, read = random.Random(0), 0
    for trial in range(40):
        data = bytearray(files[trial % 4])
        for _ in range(dice.choice([1, 5, 50])):
            data[dice.randrange(len(data))] = dice.randrange(256)
        try:
            video = open_video(bytes(data))
            read += video.frames(range(0, video.count, 3), 28, 28).shape[0] > 0
        except MediaError:
            continue
    assert read >= 8


BAD = {
    "nothing": (b"", "empty"), "text": (b"hello " * 100, "not a video"), "an address": ("http://example.org/x.mp4", "address"),
    "nobody's name": ("no-such-file.mp4", "cannot be opened"), "sound": (sound(), "no video"),
    "sound with a cover": (sound(cover=True), "no video"),
    "png": (still("PNG"), "not a video"), "jpeg": (still("JPEG"), "not a video"), "webp": (still("WEBP"), "not a video"),
    "no index": (clip()[:2000], "not a video"), "a number": (7, "not a video"), "no frames": ([], "not a video"),
    "no rows": (np.zeros((0, 4, 4, 3), np.uint8), "clip"), "one image": (np.zeros((4, 4, 3), np.uint8), "clip"),
    "floats": (torch.zeros(2, 4, 4, 3), "RGB"), "channels first": (np.zeros((2, 3, 4, 4), np.uint8), "RGB"),
    "two sizes": ([Image.new("RGB", (4, 4)), Image.new("RGB", (4, 5))], "one size"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_video_is_named(name):
    source, word = BAD[name]
    with pytest.raises(MediaError, match=word):
        open_video(source)


def test_a_playlist_opens_no_other_file(tmp_path):
    other = tmp_path / "x.ts"
    other.write_bytes(clip(form="mpegts"))
    for text in (f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nfile://{other}\n#EXT-X-ENDLIST\n",
                 f"ffconcat version 1.0\nfile {other}\n"):
        (tmp_path / "list").write_text(text)
        for source in (text.encode(), tmp_path / "list"):
            with pytest.raises(MediaError, match="not a video"):
                open_video(source)


def test_frames_that_are_too_large_are_refused_before_they_are_decoded():
    data = bytearray(clip(2, **BY_FORMAT["gif"]))
    data[6:10] = (20000).to_bytes(2, "little") * 2
    with pytest.raises(MediaError, match="pixels"):
        open_video(bytes(data))


def test_a_size_that_changes_on_the_way_is_resized_or_refused(monkeypatch):
    small, large = (clip(5, form="h264", codec="libx264", width=64 * n, height=48 * n) for n in (1, 2))
    video = open_video(small + large)
    assert (video.count, video.height, video.width) == (10, 48, 64)
    want = resize_frame(torch.from_numpy(decoded(large)[4]), 28, 28)
    assert torch.equal(video.frames([0, 9], 28, 28)[1], want)
    monkeypatch.setattr(container, "MAX_PIXELS", 5000)  # the decoder itself is told, before it takes memory
    assert video.frames([0], 28, 28).shape[0] == 1
    with pytest.raises(MediaError):
        video.frames([9], 28, 28)


def test_a_still_gif_is_a_video_of_one_frame():
    assert open_video(still("GIF")).count == 1


@pytest.mark.parametrize("kind", ["array", "tensor", "images", "arrays"])
def test_frames_at_hand_are_a_video(kind):
    frames = np.stack([picture(i, 30, 40) for i in range(6)])
    source = {"array": frames, "tensor": torch.from_numpy(frames), "images": [Image.fromarray(f) for f in frames],
              "arrays": list(frames)}[kind]
    video = open_video(source)
    assert (video.metadata.do_sample_frames, video.metadata.frames_indices) == (False, tuple(range(6)))
    assert (video.count, video.height, video.width, video.metadata.rate) == (6, 30, 40, None)
    assert np.array_equal(video.frames([1, 1, 5], 30, 40).numpy(), frames[[1, 1, 5]])
    chosen = open_video(source, {"total_num_frames": 100, "fps": 5, "frames_indices": [0, 9, 9, 20, 30, 99]})
    assert (chosen.count, chosen.metadata.total_num_frames, chosen.metadata.fps) == (6, 100, 5.0)
    assert open_video(source, {"fps": 5}).metadata.do_sample_frames
    assert open_video(source, VideoMetadata(6, fps=5)).metadata.do_sample_frames


@pytest.mark.parametrize("metadata", [{"fps": "x"}, {"total_num_frames": 3}, {"height": 7}, [1], {"frames_indices": [0]}])
@pytest.mark.parametrize("source", [clip(5), np.zeros((5, 48, 64, 3), np.uint8)], ids=["file", "array"])
def test_metadata_that_contradict_the_frames_are_named(source, metadata):
    with pytest.raises(UsageError):
        open_video(source, metadata)


def test_all_frames_of_a_file_can_be_asked_for():
    video = open_video(clip(6), {"do_sample_frames": False})
    assert video.metadata.frames_indices == tuple(range(6))


@pytest.mark.parametrize("positions", [[], [-1], [20], [3, 2]])
def test_positions_that_are_none_are_named(positions):
    with pytest.raises(UsageError):
        open_video(clip()).frames(positions, 28, 28)


def test_memory_is_bounded_by_the_result(tmp_path):
    clip(120, width=640, height=480, gop=60, reordered=0, file=tmp_path / "x.mp4")  # 110 MB of pixels
    script = ("import resource, sys\nfrom glmc.runtime.media.video import open_video\n"
              "video = open_video(sys.argv[1])\nvideo.frames([0], 28, 28)\n"
              "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nvideo.frames(range(120), 28, 28)\n"
              "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n")
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "x.mp4"], capture_output=True, text=True, check=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert int(done.stdout) < 30_000, "KiB"


def test_without_pyav_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UsageError, match=r"glmc\[video\]"):
        open_video(b"x")
    assert open_video(np.zeros((2, 4, 4, 3), np.uint8)).count == 2
