"""The bound on tokens is never exceeded, and mostly reached; a video that is too long for its room gets fewer frames."""

import itertools

import numpy as np
import pytest
from media_cases import of, recorded

from glmc.errors import RequestOutOfBounds, UsageError
from glmc.runtime.media.admit import admit
from glmc.runtime.media.budget import largest_image, largest_text, largest_video, stamp_bound, vision_bound
from glmc.runtime.media.metadata import VideoMetadata
from glmc.runtime.media.resize import image_grid, video_grid
from glmc.runtime.media.sampling import choose
from glmc.runtime.media.settings import Sizing
from glmc.runtime.media.thin import thin

RECORDED = recorded("token_budget")
LIMITS = sorted({row["max_pixels"] for row in RECORDED["rows"]})


def many_tokens(frames, height, width, sizing):
    """Vision tokens of many videos at once, -1 where the shape is refused: smart_resize over arrays."""
    factor = sizing.factor
    height, width, frames = (np.asarray(a, np.float64) for a in (height, width, frames))
    small = np.minimum(height, width) < factor
    scale = np.maximum(factor / height, factor / width)
    height, width = (np.where(small, np.trunc(side * scale), side) for side in (height, width))
    refused = np.maximum(height, width) / np.minimum(height, width) > 200
    tall, wide = (np.rint(side / factor) * factor for side in (height, width))
    volume = np.rint(frames / sizing.temporal) * sizing.temporal * tall * wide
    shrink = np.sqrt(frames * height * width / sizing.longest)
    grow = np.sqrt(sizing.shortest / (frames * height * width))
    tall, wide = (np.where(volume > sizing.longest, np.maximum(factor, np.floor(side / shrink / factor) * factor),
                           np.where(volume < sizing.shortest, np.ceil(side * grow / factor) * factor, rounded))
                  for side, rounded in ((height, tall), (width, wide)))
    tokens = np.ceil(frames / sizing.temporal) * tall * wide / (sizing.patch * sizing.merge) ** 2
    return np.where(refused, -1, tokens).astype(np.int64)


def random_sizes(seed, count, most_frames):
    """Frame counts and sides, of which a third are long and thin, and a third lie near the edge of what is refused."""
    draw = np.random.default_rng(seed)
    frames = draw.integers(2, most_frames + 1, count)
    height = np.exp(draw.uniform(0, np.log(8000), count)).astype(np.int64).clip(1)
    ratio = np.where(draw.integers(0, 3, count) == 0, draw.uniform(195, 200, count), np.exp(draw.uniform(0, 5.29, count)))
    width = np.maximum(1, height * ratio).astype(np.int64)
    flip = draw.integers(0, 2, count).astype(bool)
    return frames, np.where(flip, width, height), np.where(flip, height, width)


def exceeded(sizing, frames, height, width):
    """The cases that become more tokens than the bound says."""
    bounds = {int(n): vision_bound(int(n), sizing) for n in np.unique(frames)}
    over = many_tokens(frames, height, width, sizing) > np.array([bounds[int(n)] for n in frames])
    return list(zip(frames[over].tolist(), height[over].tolist(), width[over].tolist(), strict=True))


@pytest.mark.parametrize("sizing", [Sizing(longest=47_040_000), Sizing(longest=78_400), Sizing(
    shortest=90_000, longest=100_000, expand=2)], ids=["published", "small", "narrow"])
def test_the_arrays_are_the_function(sizing):
    frames, height, width = random_sizes(1, 2000, 700)
    for n, h, w, found in zip(frames, height, width, many_tokens(frames, height, width, sizing), strict=True):
        try:
            expected = video_grid(int(n), int(h), int(w), sizing).tokens(sizing.merge)
        except RequestOutOfBounds:
            expected = -1
        assert found == expected, (n, h, w)


@pytest.mark.parametrize("longest", LIMITS)
def test_never_exceeded_under_recorded_limits(longest):
    assert not exceeded(Sizing(longest=longest), *random_sizes(longest, 100_000, 640))


def test_never_exceeded_under_any_limits():
    draw = np.random.default_rng(5)
    for seed in range(60):
        shortest = int(np.exp(draw.uniform(5, 17)))
        longest = shortest + int(np.exp(draw.uniform(0, 18)))
        sizing = Sizing(shortest=shortest, longest=longest, expand=int(draw.integers(1, 3)))
        assert not exceeded(sizing, *random_sizes(seed, 4000, 300)), sizing


@pytest.mark.slow
def test_never_exceeded_in_nine_million():
    for longest, seed in itertools.product(LIMITS, range(20)):
        assert not exceeded(Sizing(longest=longest), *random_sizes(seed, 80_000, 3000))


def test_recorded_bounds_and_how_many_are_reached():
    reached = 0
    for row in RECORDED["rows"]:
        sizing = Sizing(longest=row["max_pixels"])
        assert vision_bound(row["frames"], sizing) == row["bound"], row
        found = video_grid(row["frames"], *row["at"], sizing).tokens(2)
        assert found == row["brute_force_max"]
        reached += found == row["bound"]
    assert reached >= 0.9 * len(RECORDED["rows"])


@pytest.mark.parametrize("row", RECORDED["summary"], ids=lambda row: row["config"])
def test_recorded_limits(row):
    sizing = Sizing(longest=row["max_pixels"])
    if "image" in row["config"]:
        height, width = largest_image(sizing)
        assert image_grid(height, width, sizing).tokens(2) == vision_bound(2, sizing) == row["simple_formula"]
        assert image_grid(9_999_999, 9_999_999, sizing).tokens(2) == row["square_image_probe"] < row["simple_formula"]
    else:
        assert largest_video(sizing, 640) == (row["bound_even_frames_up_to_640"], row["at_frames"])
        assert max(vision_bound(n, sizing) for n in range(2, 641)) == row["bound_any_frames_2_to_640"]


@pytest.mark.parametrize("longest", [1568, 2000, 78_400, 313_600, 9_633_792, 11_760_000, 12_345_678])
def test_the_largest_image_keeps_its_size(longest):
    sizing = Sizing(shortest=1, longest=longest)
    height, width = largest_image(sizing)
    assert image_grid(height, width, sizing)[1:] == (height // 14, width // 14)
    assert height <= width <= 200 * height
    if longest >= 313_600:
        assert image_grid(height, width, sizing).tokens(2) >= 0.99 * vision_bound(2, sizing)


def test_times_grow_with_the_length():
    settings = of("glm46v")
    assert [stamp_bound(s, settings) for s in (0, 9.94, 10, 99.96, 2400, 36000)] == [len(t) + len(" seconds") for t in (
        "0.0", "9.9", "10.0", "100.0", "2400.0", "36000.0")]
    assert stamp_bound(2400, of("glm4v")) == 4


@pytest.mark.parametrize("sampler", ["glm4v", "glm46v", "glmga"])
def test_no_video_has_more_text_than_the_bound(sampler):
    settings, draw = of(sampler), np.random.default_rng(3)
    bound = largest_text(settings, 3000)
    for _ in range(150):
        record = VideoMetadata(int(draw.integers(1, 70000)), fps=24.0)
        height, width = (int(s) for s in np.exp(draw.uniform(2, 8, 2)))
        try:
            media = admit(settings, videos=[(record, height, width)])
        except RequestOutOfBounds:
            continue
        assert media.tokens + 2 <= bound


CLIPS = [(VideoMetadata(2000, fps=25.0), 480, 640), (VideoMetadata(60000, fps=25.0), 56, 9000),
         (VideoMetadata(7, fps=2.0), 50, 50),
         (VideoMetadata(50, fps=25.0, frames_indices=tuple(range(0, 50, 10)), do_sample_frames=False), 300, 300)]


@pytest.mark.parametrize("cap", [40, 300, 3000, 30_000, 10**6])
@pytest.mark.parametrize("case", CLIPS, ids=lambda case: f"{case[0].total_num_frames}")
@pytest.mark.parametrize("sampler", ["glm4v", "glm46v", "glmga"])
def test_a_video_fits_its_room_or_is_refused(sampler, case, cap):
    settings, (metadata, height, width) = of(sampler), case
    free = admit(settings, videos=[case])
    clip = choose(metadata, settings)
    try:
        media = admit(settings, videos=[case], video_max_tokens=cap)
    except RequestOutOfBounds as fault:
        assert fault.field == "video_max_tokens"  # noqa: PT017
        with pytest.raises(RequestOutOfBounds):
            admit(settings, videos=[(VideoMetadata(9, fps=2.0, frames_indices=(0, 0), do_sample_frames=False), height, width)],
                  video_max_tokens=cap)
        return
    kept = media.videos[0].clip
    assert media.tokens <= cap
    assert thin(clip, height, width, settings, cap) == kept
    assert kept.indices[0] == clip.indices[0]
    assert kept.indices[-1] == clip.indices[-1]
    assert [clip.indices[clip.positions.index(p)] for p in kept.positions] == list(kept.indices)
    if free.tokens <= cap:
        assert media == free
    else:
        assert len(kept.indices) % 2 == 0
        assert "frames are kept" in media.notes[-1]
        for more in range(len(kept.indices) + 2, len(clip.indices), 2):
            spread = tuple(clip.indices[i * (len(clip.indices) - 1) // (more - 1)] for i in range(more))
            given = VideoMetadata(metadata.total_num_frames, metadata.fps, frames_indices=spread, do_sample_frames=False)
            assert admit(settings, videos=[(given, height, width)]).tokens > cap


@pytest.mark.parametrize("most", [0, -5, 2.5, True, "100"])
def test_a_room_that_cannot_be(most):
    with pytest.raises(UsageError, match="video_max_tokens"):
        admit(of("glm46v"), videos=[CLIPS[0]], video_max_tokens=most)


def test_a_request_is_counted_and_refused_before_anything_is_read():
    settings = of("glm46v")
    media = admit(settings, [(1000, 1000), (30, 20)], [({"total_num_frames": 60000, "fps": 0, "duration": 2400}, 1080, 1920)])
    assert media.image_tokens == (1296, 12)
    assert "25 a second" in media.notes[0]
    text = media.expand("<|image|><|image|><|video|>")
    grid = media.videos[0].grid
    assert text.count("<|image|>") == 1308 + grid.tokens(2)
    assert text.count("<|begin_of_image|>") == grid.t == len(media.videos[0].times)
    assert media.video_tokens[0] == grid.tokens(2) + 2 * grid.t + sum(map(len, media.videos[0].times))
    media.check_room(10, media.tokens + 10)
    with pytest.raises(RequestOutOfBounds, match="1308 of 2 images"):
        media.check_room(10, media.tokens + 9)
