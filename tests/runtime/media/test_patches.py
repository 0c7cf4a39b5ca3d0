"""Pixels are those of the published processors, bit for bit: images as without torchvision, videos as with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil

from glmc.errors import UsageError
from glmc.runtime.media.patches import image_patches, resize_frame, resize_image, video_patches
from glmc.runtime.media.settings import Sizing

DATA = Path(__file__).parents[2] / "data" / "multimodal"
PIXELS = load_file(DATA / "pixels.safetensors")
PLAIN = Sizing(rescale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def noise(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("name", ["glm4v", "glm46v", "glmga"])
def test_a_video_is_that_of_the_published_processor(name):
    _, high, wide = PIXELS[f"{name}.video.grid"][0].tolist()
    frames = torch.stack([resize_frame(f, high * 14, wide * 14) for f in PIXELS[f"{name}.video.input"]])
    assert torch.equal(video_patches(frames, Sizing()), PIXELS[f"{name}.video.pixels"])


@pytest.mark.parametrize("name", ["glm4v", "glm46v", "glmga"])
def test_an_image_read_as_one_frame_is_that_of_the_processor_with_torchvision(name):
    _, high, wide = PIXELS[f"{name}.image.grid"][0].tolist()
    frame = resize_frame(PIXELS[f"{name}.image.input"], high * 14, wide * 14)
    assert torch.equal(video_patches(frame[None], Sizing()), PIXELS[f"{name}.image.pixels"])


@pytest.mark.parametrize(("height", "width"), [(56, 84), (33, 47), (200, 333), (28, 5600), (641, 90)])
@pytest.mark.parametrize("processor", [Glm4vImageProcessorPil, Glm46VImageProcessorPil])
def test_an_image_is_that_of_the_processor_without_torchvision(processor, height, width):
    image = noise(height, width, 3)
    want = processor()(images=[Image.fromarray(image.numpy())], return_tensors="pt")
    _, high, wide = want["image_grid_thw"][0].tolist()
    assert torch.equal(image_patches(resize_image(image, high * 14, wide * 14), Sizing()), want["pixel_values"])


def test_other_numbers_than_the_default_are_used():
    numbers = {"rescale": 1 / 127.5, "mean": (1.0, 0.5, 0.25), "std": (0.5, 1.5, 0.3)}
    image = noise(28, 56, 3)
    want = Glm4vImageProcessorPil(rescale_factor=numbers["rescale"], image_mean=numbers["mean"], image_std=numbers["std"],
                                  size={"shortest_edge": 1, "longest_edge": 9999})(
        images=[Image.fromarray(image.numpy())], return_tensors="pt")
    assert torch.equal(image_patches(image, Sizing(**numbers)), want["pixel_values"])


def test_the_two_ways_of_scaling_differ_in_the_last_bits_only():
    image = noise(112, 112, 3)
    apart = (image_patches(image, Sizing()) - video_patches(image[None], Sizing())).abs().max()
    assert 0 < apart < 3e-7


@pytest.mark.parametrize("kind", ["image", "video"])
def test_the_order_of_patches_and_of_the_values_inside(kind):
    golden = json.loads((DATA / "patch_order.json").read_text())
    frames = golden["video_frames"] if kind == "video" else 1
    high, wide = golden["height"], golden["width"]
    value = torch.arange(frames * 3 * high * wide).view(frames, 3, high, wide).permute(0, 2, 3, 1)
    cut = {"video": lambda f: video_patches(f, PLAIN), "image": lambda f: image_patches(f[0], PLAIN)}[kind]
    made = cut((value % 256).byte()) + 256 * cut((value // 256).byte())
    for patch, inside, want in golden[f"{kind}_samples"]:
        assert made[patch, inside] == want
    corners = [[int(made[i, 0]) % (high * wide) // wide // 14, int(made[i, 0]) % wide // 14]
               for i in range(len(golden["patch_row_col"]))]
    assert corners == golden["patch_row_col"]


@pytest.mark.parametrize(("frames", "depth"), [(1, 2), (3, 2), (4, 3), (5, 1)])
def test_the_last_frame_is_repeated(frames, depth):
    clip, sizing = noise(frames, 28, 28, 3), Sizing(temporal=depth)
    short = -frames % depth
    made = video_patches(clip, sizing)
    assert torch.equal(made, video_patches(torch.cat([clip, clip[-1:].expand(short, -1, -1, -1)]), sizing))
    assert made.shape == ((frames + short) // depth * 4, 3 * depth * 196)


def test_a_frame_alone_is_resized_as_among_others():
    clip = noise(4, 61, 97, 3)
    together = torch.nn.functional.interpolate(clip.permute(0, 3, 1, 2).contiguous(), (56, 84), mode="bicubic",
                                               align_corners=False, antialias=True)
    assert torch.equal(torch.stack([resize_frame(f, 56, 84) for f in clip]), together.permute(0, 2, 3, 1))


@pytest.mark.parametrize("call", [
    lambda: image_patches(noise(28, 42, 3), Sizing()), lambda: image_patches(noise(28, 28, 4), Sizing()),
    lambda: image_patches(noise(28, 28, 3).float(), Sizing()), lambda: video_patches(noise(28, 28, 3), Sizing()),
    lambda: video_patches(noise(0, 28, 28, 3), Sizing()), lambda: resize_image(noise(28, 28), 28, 28),
])
def test_what_does_not_fit_is_named(call):
    with pytest.raises(UsageError):
        call()
