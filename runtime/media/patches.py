"""RGB bytes to the pixels of the vision tower: resized, scaled and cut into patches, bit for bit as published.

transformers prepares images with Pillow and numpy where torchvision is not installed, and videos with torch always; these
two are followed here. (With torchvision it prepares an image as a video of one frame: resize_frame, then video_patches.)
A byte has 256 values, so that scaling is a table of 256 numbers a channel, made by the published arithmetic.
"""

from __future__ import annotations

import numpy as np
import torch

from glmc.errors import UsageError
from glmc.runtime.media.settings import Sizing
from glmc.runtime.media.source import library


def resize_image(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """uint8 [H, W, 3] -> uint8 [height, width, 3] by Pillow's bicubic filter, as Glm4vImageProcessorPil resizes.

    Takes 4 bytes for each pixel of `image` besides the result. Raises UsageError without Pillow.
    """
    pil = library("PIL.Image", "image")
    _check(image, 3)
    return torch.from_numpy(np.array(pil.fromarray(image.numpy()).resize((width, height), pil.Resampling.BICUBIC)))


def resize_frame(frame: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """uint8 [H, W, 3] -> uint8 [height, width, 3] by torch's antialiased bicubic filter, as Glm4vVideoProcessor resizes."""
    _check(frame, 3)
    if frame.shape[:2] == (height, width):
        return frame
    planes = torch.nn.functional.interpolate(frame.permute(2, 0, 1)[None], (height, width), mode="bicubic",
                                             align_corners=False, antialias=True)
    return planes[0].permute(1, 2, 0)


def image_patches(image: torch.Tensor, sizing: Sizing) -> torch.Tensor:
    """uint8 [H, W, 3], resized -> float32 [P, 3 * temporal * patch * patch], P = (H / patch) * (W / patch).

    Patches stand in blocks of merge x merge, blocks and patches row by row; in a patch the order is channel, frame, row,
    column, and the image is every frame. H and W are multiples of patch * merge, else UsageError.
    """
    _check(image, 3)
    return _patches(image[None], _image_values(sizing), sizing)


def video_patches(frames: torch.Tensor, sizing: Sizing) -> torch.Tensor:
    """uint8 [n, H, W, 3], resized -> float32 [P, 3 * temporal * patch * patch], in the order of image_patches.

    P = ceil(n / temporal) * (H / patch) * (W / patch); `temporal` frames share a patch, and the last frame is repeated
    where n is no multiple. Raises UsageError as image_patches does.
    """
    _check(frames, 4)
    return _patches(frames, _video_values(sizing), sizing)


def _check(pixels: torch.Tensor, dims: int) -> None:
    if pixels.dtype != torch.uint8 or pixels.ndim != dims or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise UsageError("these are not RGB pixels", expected=f"uint8 [{'n, ' * (dims - 3)}H, W, 3]",
                         found=f"{pixels.dtype} {list(pixels.shape)}")


def _image_values(sizing: Sizing) -> np.ndarray:
    """float32 [3, 256]: what each byte becomes in each channel of an image; scaled in float64, normalised in float32."""
    scaled = (np.arange(256, dtype=np.float64) * sizing.rescale).astype(np.float32)
    mean, std = np.array(sizing.mean, np.float32), np.array(sizing.std, np.float32)
    return (scaled - mean[:, None]) / std[:, None]


def _video_values(sizing: Sizing) -> np.ndarray:
    """float32 [3, 256]: the same of a video, where the scale is folded into mean and deviation first."""
    mean, std = (torch.tensor(numbers) * (1.0 / sizing.rescale) for numbers in (sizing.mean, sizing.std))
    return ((torch.arange(256, dtype=torch.float32) - mean[:, None]) / std[:, None]).numpy()


def _patches(frames: torch.Tensor, values: np.ndarray, sizing: Sizing) -> torch.Tensor:
    """Patches of frames uint8 [n, H, W, 3] by `values` float32 [3, 256]; a temporal patch at a time, so that nothing but
    the result is large."""
    count, height, width, _ = frames.shape
    side, merge, depth = sizing.patch, sizing.merge, sizing.temporal
    if height % (side * merge) or width % (side * merge):
        raise UsageError("the picture does not divide into patches", found=f"{width} x {height}",
                         expected=f"multiples of {side * merge}")
    stored = frames.numpy()
    rows, columns, groups = height // (side * merge), width // (side * merge), -(-count // depth)
    made = np.empty((groups, rows, columns, merge, merge, 3, depth, side, side), np.float32)
    for group in range(groups):
        for at in range(min(depth, count - group * depth)):
            for channel in range(3):
                plane = values[channel].take(stored[group * depth + at, ..., channel])
                blocks = plane.reshape(rows, merge, side, columns, merge, side).transpose(0, 3, 1, 4, 2, 5)
                # The last frame of a group stands for those that it lacks.
                made[group, :, :, :, :, channel, at:] = blocks[:, :, :, :, None]
    return torch.from_numpy(made.reshape(groups * height * width // side ** 2, 3 * depth * side ** 2))
