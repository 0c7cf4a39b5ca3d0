"""An admitted image or video to what the vision tower takes: read, resized to its grid, cut into patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from glmc.errors import MediaError
from glmc.runtime.media.image import read_image
from glmc.runtime.media.patches import image_patches, resize_image, video_patches
from glmc.runtime.media.resize import Grid, image_grid
from glmc.runtime.media.settings import Sizing
from glmc.runtime.media.source import said
from glmc.runtime.media.video import VideoReader


def image_pixels(source: Any, grid: Grid, sizing: Sizing) -> torch.Tensor:
    """float32 [grid.h * grid.w, 3 * temporal * patch * patch] of an image whose header gave `grid`; see image_patches.

    Raises as read_image does, and MediaError where the image is no longer the one whose header was read.
    """
    image = read_image(source)
    height, width, _ = image.shape
    if (found := image_grid(height, width, sizing)) != grid:
        raise MediaError("the image has changed since its header was read", file=said(source), expected=grid, found=found)
    return image_patches(resize_image(image, grid.h * sizing.patch, grid.w * sizing.patch), sizing)


def video_pixels(video: VideoReader, positions: Sequence[int], grid: Grid, sizing: Sizing) -> torch.Tensor:
    """float32 [grid.t * grid.h * grid.w, 3 * temporal * patch * patch] of the frames at `positions`; see video_patches.

    Takes a quarter of the result besides it. Raises as VideoReader.frames does, and MediaError where
    the positions are not as many as the grid has room for.
    """
    if -(-len(positions) // sizing.temporal) != grid.t:
        raise MediaError("the frames do not fill the grid", field="positions", found=len(positions),
                         expected=f"{grid.t} temporal patches of {sizing.temporal}")
    return video_patches(video.frames(positions, grid.h * sizing.patch, grid.w * sizing.patch), sizing)
