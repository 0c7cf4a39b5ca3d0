"""Pictures in and out: condition images to pixels for the autoencoder, its pixels to an image, and what generation gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from glmc.runtime.image.prior import Prior
from glmc.runtime.media.image import read_image
from glmc.runtime.media.source import library


@dataclass(frozen=True)
class Picture:
    """image: of PIL, RGB. latents: float32 [1, C, H, W], as the last step left them. prior: the tokens it was made from.
    seed: of tokens and noise. timings: seconds by stage."""

    image: Any
    latents: torch.Tensor
    prior: Prior
    seed: int
    timings: dict[str, float]


def pixels_of(source: Any, height: int, width: int) -> torch.Tensor:
    """A condition image, resized as published, as float32 [1, 3, height, width] from -1 to 1. Raises MediaError."""
    pil = library("PIL.Image", "image")
    image = pil.fromarray(read_image(source).numpy()).resize((width, height), pil.Resampling.LANCZOS)
    values = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255.0)
    return 2.0 * values.permute(2, 0, 1).unsqueeze(0) - 1.0


def image_of(pixels: torch.Tensor) -> Any:
    """[1, 3, H, W], where -1 is black and 1 is full, as an image of PIL, 8 bits a channel."""
    values = (pixels[0] * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 0).float().cpu().numpy()
    return library("PIL.Image", "image").fromarray((values * 255).round().astype("uint8"))
