"""From a file to the pixels of its grid: what was admitted from the header is what is read."""

from __future__ import annotations

import io

import pytest
import torch
from clips import clip
from PIL import Image
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

from glmc.errors import MediaError, RequestOutOfBounds
from glmc.runtime.media.image import image_header
from glmc.runtime.media.pixels import image_pixels, video_pixels
from glmc.runtime.media.resize import Grid, image_grid, video_grid
from glmc.runtime.media.settings import Sizing
from glmc.runtime.media.video import open_video


def png(width: int, height: int, orientation: int = 1) -> bytes:
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(stream, "PNG", exif=exif)
    return stream.getvalue()


def grid_of(data: bytes) -> Grid:
    header = image_header(data)
    return image_grid(header.height, header.width, Sizing())


@pytest.mark.parametrize(("width", "height"), [(100, 70), (20, 4000), (4000, 20), (3000, 2500), (1, 1)])
def test_an_image_fills_the_grid_of_its_header(width, height):
    data = png(width, height)
    grid = grid_of(data)
    pixels = image_pixels(data, grid, Sizing())
    want = Glm4vImageProcessorPil(size={"shortest_edge": 12544, "longest_edge": Sizing().longest})(
        images=[Image.open(io.BytesIO(data))], return_tensors="pt")
    assert want["image_grid_thw"].tolist() == [list(grid)]
    assert torch.equal(pixels, want["pixel_values"])


def test_a_turned_image_fills_the_grid_of_its_header():
    data = png(300, 100, orientation=6)
    grid = grid_of(data)
    assert grid.h > grid.w
    assert image_pixels(data, grid, Sizing()).shape == (grid.h * grid.w, 1176)


@pytest.mark.parametrize(("width", "height"), [(1, 4000), (4000, 19)])
def test_an_image_that_is_too_long_is_refused_from_its_header(width, height):
    with pytest.raises(RequestOutOfBounds, match="200 to 1"):
        grid_of(png(width, height))


def test_an_image_that_changed_since_is_refused(tmp_path):
    (tmp_path / "x.png").write_bytes(png(100, 70))
    grid = grid_of(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes(png(70, 100))
    with pytest.raises(MediaError, match="changed"):
        image_pixels(tmp_path / "x.png", grid, Sizing())


@pytest.mark.parametrize("positions", [[0, 4, 8, 8], [3, 5, 7]])
def test_a_video_fills_its_grid(positions):
    video = open_video(clip())
    grid = video_grid(len(positions), video.height, video.width, Sizing())
    assert video_pixels(video, positions, grid, Sizing()).shape == (grid.t * grid.h * grid.w, 1176)
    with pytest.raises(MediaError, match="fill"):
        video_pixels(video, positions[:1], grid, Sizing())
