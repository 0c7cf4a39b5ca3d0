"""Pictures of the tiny pipeline are those of the published one, for the same noise and tokens."""

from __future__ import annotations

from collections.abc import Sequence

import picturing
import pytest
import torch
from PIL import Image

from glmc.runtime.image.prior import Prior

PROMPT = "a sign \"open\" and 'it' over \u201ca door\u201d"


def drawn(height: int, width: int, images: Sequence[Image.Image] = (), seed: int = 3) -> tuple[Prior, torch.Tensor]:
    """Random tokens for a picture and the images that it is made from, and noise."""
    generator = torch.Generator().manual_seed(seed)
    codes = picturing.TRANSFORMER["prior_vq_quantizer_codebook_size"]

    def grid(rows: int, columns: int) -> torch.Tensor:
        return torch.randint(0, codes, (rows // 16, columns // 16), generator=generator)

    noise = torch.randn(1, 4, height // 8, width // 8, generator=generator)
    return Prior(grid(height, width), tuple(grid(*i.size[::-1]) for i in images), torch.zeros(0, dtype=torch.int64), 0), noise


def images(*sizes: tuple[int, int], seed: int = 9) -> list[Image.Image]:
    """Random images of (height, width)."""
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=generator) for size in sizes]
    return [Image.fromarray(value.numpy()) for value in values]


def published(pipeline, prompt: str, prior: Prior, noise: torch.Tensor, given: Sequence[Image.Image], steps: int,
              guidance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(latents, pixels float32 [H, W, 3]) of the published pipeline."""
    sources = {} if not given else {
        "image": list(given), "prior_token_image_ids": [torch.cat([s.flatten() for s in prior.sources])],
        "source_image_grid_thw": [torch.tensor([[1, *s.shape] for s in prior.sources])]}
    rows, columns = prior.target.shape
    asked = {"prompt": prompt, "height": 16 * rows, "width": 16 * columns, "num_inference_steps": steps,
             "guidance_scale": guidance, "latents": noise, "prior_token_ids": prior.target.reshape(1, -1), **sources}
    return tuple(pipeline(**asked, output_type=kind).images[0] for kind in ("latent", "pil"))


@pytest.mark.parametrize(("size", "given", "steps", "guidance"), [
    ((64, 96), (), 4, 1.5), ((160, 32), (), 1, 1.5), ((32, 32), (), 4, 1.0), ((64, 64), ((64, 32),), 4, 1.5),
    ((96, 64), ((32, 96), (64, 64)), 3, 1.7), ((32, 64), ((96, 32),), 1, 1.0),
])
def test_a_picture_is_the_published_one(size, given, steps, guidance):
    made = picturing.made()
    shown = images(*given)
    prior, noise = drawn(*size, shown)
    latents, image = published(made.published, PROMPT, prior, noise, shown, steps, guidance)
    ours = made.model.generate(PROMPT, *size, shown, steps, guidance, seed=1, prior=prior, noise=noise)
    assert float((ours.latents[0] - latents).abs().max()) <= 1e-4 * float(latents.abs().max())
    apart = (torch.tensor(list(ours.image.getdata())) - torch.tensor(list(image.getdata()))).abs()
    assert ours.image.size == size[::-1]
    assert int(apart.max()) <= 1
