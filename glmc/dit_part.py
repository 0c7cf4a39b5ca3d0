"""The published GLM-Image diffusion transformer as a part to be traced.

What crosses its boundary (B rows, T text tokens, H x W patches of the latent image):

    latents    [B, C, p * H, p * W]
    text       [B, T, text width]
    prior      int64 [B, H, W]    image tokens of the autoregressive model, one a patch
    dropped    bool [B, H, W]     where the prior is left out
    timestep   float32 [B]
    size       [B, 2]             height and width of the image in pixels, in the model's dtype
    crop       [B, 2]             left and upper edge of the crop, in the model's dtype
    -> noise   [B, C, p * H, p * W]

That is one call of the published pipeline for a picture made from text; its cache of keys for given pictures is left out.
Parameters lie below `transformer`, the folder of the published pipeline.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from glmc.errors import ConfigError, UsageError
from glmc.parts import Part

_LETTERS = ("B", "T", "H", "W")


class ExplicitDenoiser(nn.Module):
    """The published transformer with the boundary of this module's docstring."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, latents: torch.Tensor, text: torch.Tensor, prior: torch.Tensor, dropped: torch.Tensor,
                timestep: torch.Tensor, size: torch.Tensor, crop: torch.Tensor) -> torch.Tensor:
        return self.transformer(latents, text, prior.flatten(1), dropped.flatten(1), timestep, size, crop,
                                return_dict=False)[0]


def build(config: dict[str, Any], dtype: torch.dtype, device: str = "meta") -> nn.Module:
    """The published class for the transformer's own config.json. Raises ConfigError, and UsageError without diffusers."""
    try:
        from diffusers.models.transformers.transformer_glm_image import GlmImageTransformer2DModel
    except ImportError as error:
        raise UsageError("the published class of this model is in a package that is not installed", field="diffusers",
                         found=str(error), hint="pip install 'glmc[image]'") from error
    fields = {k: v for k, v in config.items() if not k.startswith("_") and k not in ("torch_dtype", "dtype")}
    try:
        with torch.device(device):
            model = GlmImageTransformer2DModel(**fields)
    except (TypeError, ValueError) as error:
        raise ConfigError("diffusers refuses this configuration", field="config.json", found=str(error)) from error
    return nn.Module.to(model, dtype).eval()  # the class of diffusers warns of a conversion that it does itself


def dit_part(model: Any, dtype: torch.dtype) -> Part:
    """The part of a published transformer on the meta device; rows, text tokens, height and width are all dynamic."""
    fields, rows, tokens, height, width = model.config, 2, 7, 6, 10
    b, t, h, w = (torch.export.Dim(letter, min=2, max=1 << 16) for letter in _LETTERS)
    patch = fields.patch_size

    def made(kind: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=kind, device="meta")

    args = (made(dtype, rows, fields.in_channels, patch * height, patch * width),
            made(dtype, rows, tokens, fields.text_embed_dim), made(torch.int64, rows, height, width),
            made(torch.bool, rows, height, width), made(torch.float32, rows), made(dtype, rows, 2), made(dtype, rows, 2))
    high, wide = (patch * h, patch * w) if patch > 1 else (h, w)
    dynamic = ({0: b, 2: high, 3: wide}, {0: b, 1: t}, {0: b, 1: h, 2: w}, {0: b, 1: h, 2: w}, {0: b}, {0: b}, {0: b})
    return Part("dit", ExplicitDenoiser(model), args, dynamic, {"B": (2, 0), "T": (1, 1), "H": (2, 1), "W": (2, 2)},
                ("latents", "text", "prior", "dropped", "timestep", "size", "crop"))


def parts(config: dict[str, Any], dtype: torch.dtype) -> list[Part]:
    """The one part of the transformer that `config` describes. Raises ConfigError, UsageError."""
    return [dit_part(build(config, dtype), dtype)]
