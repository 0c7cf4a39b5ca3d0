"""What a pipeline of diffusers has beside the autoregressive model and the diffusion transformer, as parts to be traced.

glyph         ids int64 [B, T], mask int64 [B, T] (1 for a token, 0 for padding) -> [B, T, width]: the published T5 encoder
vae_decode    latents [1, C, H, W] -> pixels [1, 3, s * H, s * W], from -1 to 1 or a little more
vae_encode    pixels [1, 3, s * H, s * W] -> latents [1, C, H, W], the mode of the published distribution

Parameters lie below `text_encoder` and `vae`, the folders of the published pipeline.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from glmc import dit_part
from glmc.errors import ConfigError
from glmc.parts import Part

_MOST = 1 << 16


class ExplicitGlyphs(nn.Module):
    """The published encoder with the boundary of this module's docstring."""

    def __init__(self, text_encoder: Any) -> None:
        super().__init__()
        self.text_encoder: Any = nn.Module()
        self.text_encoder.shared = text_encoder.shared  # the table's only name here: the published encoder has it twice
        self.text_encoder.encoder = nn.Module()
        self.text_encoder.encoder.block = text_encoder.encoder.block
        self.text_encoder.encoder.final_layer_norm = text_encoder.encoder.final_layer_norm

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.text_encoder.shared(ids)
        hides = (mask == 0)[:, None, None, :].to(hidden.dtype) * torch.finfo(hidden.dtype).min
        bias = None
        for block in self.text_encoder.encoder.block:
            hidden, bias, *_ = block(hidden, hides, bias, None, None, None)
        return self.text_encoder.encoder.final_layer_norm(hidden)


class ExplicitDecoder(nn.Module):
    """The published way from latents to pixels."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae: Any = vae

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(latents, return_dict=False)[0]


class ExplicitEncoder(nn.Module):
    """The published way from pixels to latents."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae: Any = vae

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.vae._encode(pixels).chunk(2, dim=1)[0]


def parts(components: dict[str, dict[str, Any]], dtype: torch.dtype) -> tuple[nn.Module, list[Part]]:
    """The published classes of a pipeline's folders, in one module by folder, and their parts, on the meta device.

    components: folder -> its configuration. Raises ConfigError, and UsageError without diffusers.
    """
    made = nn.Module()
    made.text_encoder = encoder = build_encoder(components["text_encoder"], dtype)
    made.transformer = transformer = dit_part.build(components["transformer"], dtype)
    made.vae = vae = build_vae(components["vae"], dtype)
    return made, [glyph_part(encoder), dit_part.dit_part(transformer, dtype), *vae_parts(vae, dtype)]


def build_encoder(config: dict[str, Any], dtype: torch.dtype, device: str = "meta") -> nn.Module:
    """The published T5 encoder for its folder's config.json. Raises ConfigError."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import T5Config, T5EncoderModel

    fields = {k: v for k, v in config.items() if k not in ("torch_dtype", "dtype")}
    try:
        parsed = T5Config(**fields)
    except (TypeError, ValueError, KeyError, AttributeError, StrictDataclassError) as error:
        raise ConfigError("transformers refuses this configuration", file="text_encoder/config.json",
                          found=str(error)) from error
    with torch.device(device):
        return T5EncoderModel._from_config(parsed, dtype=dtype, attn_implementation="eager").eval()


def build_vae(config: dict[str, Any], dtype: torch.dtype, device: str = "meta") -> nn.Module:
    """The published autoencoder for its folder's config.json. Raises ConfigError, and UsageError without diffusers."""
    model = dit_part.of_diffusers("AutoencoderKL", config, dtype, device, "vae/config.json")
    for module in model.modules():
        if type(module).__name__ == "Upsample2D" and getattr(module, "interpolate", False) and module.norm is None:
            module.forward = MethodType(_twice, module)
    return model


def _twice(self: Any, hidden_states: torch.Tensor, output_size: None = None) -> torch.Tensor:
    """The published step without its questions about the number of values, which no graph with symbolic sizes can hold."""
    return self.conv(functional.interpolate(hidden_states, scale_factor=2.0, mode="nearest"))


def glyph_part(encoder: nn.Module) -> Part:
    """The part of a T5 encoder; rows and tokens are dynamic."""
    rows, tokens = (torch.export.Dim(letter, min=2, max=_MOST) for letter in "BT")
    args = tuple(torch.zeros(3, 7, dtype=torch.int64, device="meta") for _ in range(2))
    letters = {"B": (0, 0), "T": (0, 1)}
    return Part("glyph", ExplicitGlyphs(encoder), args, ({0: rows, 1: tokens},) * 2, letters, ("ids", "mask"))


def vae_parts(vae: Any, dtype: torch.dtype) -> list[Part]:
    """Decoder and encoder of an autoencoder, one picture at a time; height and width are dynamic."""
    high, wide = (torch.export.Dim(letter, min=2, max=_MOST) for letter in "HW")
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    latents = torch.zeros(1, vae.config.latent_channels, 6, 10, dtype=dtype, device="meta")
    pixels = torch.zeros(1, vae.config.in_channels, 6 * scale, 10 * scale, dtype=dtype, device="meta")
    letters = {"H": (0, 2), "W": (0, 3)}
    return [Part("vae_decode", ExplicitDecoder(vae), (latents,), ({2: high, 3: wide},), letters, ("latents",)),
            Part("vae_encode", ExplicitEncoder(vae), (pixels,), ({2: scale * high, 3: scale * wide},), letters, ("pixels",))]
