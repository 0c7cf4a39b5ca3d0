"""The published GLM-Image diffusion transformer as a part to be traced.

What crosses its boundary (B pictures, T text tokens, H x W patches of the latent image, or of this rank's rows of it):

    latents    [B, C, p * H, p * W]
    text       [B, T, text width]
    prior      int64 [B, H, W]    image tokens of the autoregressive model, one a patch
    dropped    bool [B, H, W]     where the prior is left out
    timestep   float32 [B]
    size       float32 [B, 2]     height and width of the image in pixels
    crop       float32 [B, 2]     left and upper edge of the crop
    rows       int64 [H]          the numbers of the rows of patches, by which queries and keys turn
    columns    int64 [W]
    slots      [K]                only its length counts, and only for the trace: all keys that a query sees
    -> noise   [B, C, p * H, p * W]

Every block is cut where the published one consults its cache of keys and values: what goes in are the keys and values of the
tokens at hand, [B, T + H * W, heads, head dim], what comes out are those of all tokens, [B, K, heads, head dim].
Parameters lie below `transformer`, the folder of the published pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from glmc.errors import ConfigError, UsageError
from glmc.parts import Part

_LETTERS = ("B", "T", "H", "W", "K")

# Where a block is cut: what the tokens at hand have goes in, what all tokens have comes out. dim: that of the tokens; after:
# the letter that counts the first tokens, which all ranks hold alike.
torch.library.define("glmc::exchange", "(Tensor key, Tensor value, Tensor slots, int dim, str after, int layer) "
                     "-> (Tensor, Tensor)")


@torch.library.impl("glmc::exchange", "Meta")
def _(key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor, dim: int, after: str, layer: int):
    def of_all(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.new_empty([slots.shape[0] if d == dim else size for d, size in enumerate(tensor.shape)])

    return of_all(key), of_all(value)


@dataclass(frozen=True)
class _Cut:
    """In the place of a block's published cache: it always reads, and reading is the cut."""

    layer: int
    slots: torch.Tensor
    mode: str = "read"

    def get(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ops.glmc.exchange(key, value, self.slots, 1, "T", self.layer)


class ExplicitDenoiser(nn.Module):
    """The published transformer with the boundary of this module's docstring."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer: Any = transformer

    def forward(self, latents: torch.Tensor, text: torch.Tensor, prior: torch.Tensor, dropped: torch.Tensor,
                timestep: torch.Tensor, size: torch.Tensor, crop: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor,
                slots: torch.Tensor) -> torch.Tensor:
        cuts = [_Cut(layer, slots) for layer in range(len(self.transformer.transformer_blocks))]
        return self.transformer(latents, text, prior.flatten(1), dropped.flatten(1), timestep, size, crop, return_dict=False,
                                kv_caches=cuts, image_rotary_emb=self.angles(rows, columns))[0]

    def angles(self, rows: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines [H * W, head dim], as the published class has them for a whole picture."""
        half, theta = self.transformer.rope.dim // 2, self.transformer.rope.theta
        inverse = 1.0 / theta ** (torch.arange(0, half, 2, dtype=torch.float32, device=rows.device) / half)
        high = torch.outer(rows, inverse).unsqueeze(1).expand(rows.shape[0], columns.shape[0], -1)
        wide = torch.outer(columns, inverse).unsqueeze(0).expand(rows.shape[0], columns.shape[0], -1)
        angles = torch.cat([high, wide], dim=-1)
        angles = torch.cat([angles, angles], dim=-1).reshape(rows.shape[0] * columns.shape[0], -1)
        return angles.cos(), angles.sin()


def build(config: dict[str, Any], dtype: torch.dtype, device: str = "meta") -> nn.Module:
    """The published class for the transformer's own config.json. Raises ConfigError, and UsageError without diffusers."""
    return of_diffusers("GlmImageTransformer2DModel", config, dtype, device)


def of_diffusers(name: str, config: dict[str, Any], dtype: torch.dtype, device: str, file: str = "config.json") -> nn.Module:
    """A class of diffusers for its own config.json, which `file` is. Raises ConfigError, and UsageError without diffusers."""
    try:
        import diffusers
    except ImportError as error:
        raise UsageError("the published class of this model is in a package that is not installed", field="diffusers",
                         found=str(error), hint="pip install 'glmc[image]'") from error
    fields = {k: v for k, v in config.items() if not k.startswith("_") and k not in ("torch_dtype", "dtype")}
    try:
        with torch.device(device):
            model = getattr(diffusers, name)(**fields)
    except (TypeError, ValueError) as error:
        raise ConfigError("diffusers refuses this configuration", file=file, found=str(error)) from error
    return nn.Module.to(model, dtype).eval()  # the class of diffusers warns of a conversion that it does itself


def dit_part(model: Any, dtype: torch.dtype) -> Part:
    """The part of a published transformer on the meta device; pictures, text tokens, height, width and keys are all dynamic."""
    fields, rows, tokens, height, width, slots = model.config, 2, 7, 6, 10, 97
    b, t, h, w, k = (torch.export.Dim(letter, min=2, max=1 << 16) for letter in _LETTERS)
    patch = fields.patch_size

    def made(kind: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=kind, device="meta")

    args = (made(dtype, rows, fields.in_channels, patch * height, patch * width),
            made(dtype, rows, tokens, fields.text_embed_dim), made(torch.int64, rows, height, width),
            made(torch.bool, rows, height, width), made(torch.float32, rows), made(torch.float32, rows, 2),
            made(torch.float32, rows, 2), made(torch.int64, height), made(torch.int64, width), made(torch.bool, slots))
    high, wide = (patch * h, patch * w) if patch > 1 else (h, w)
    dynamic = ({0: b, 2: high, 3: wide}, {0: b, 1: t}, {0: b, 1: h, 2: w}, {0: b, 1: h, 2: w}, {0: b}, {0: b}, {0: b},
               {0: h}, {0: w}, {0: k})
    letters = {"B": (2, 0), "T": (1, 1), "H": (2, 1), "W": (2, 2), "K": (9, 0)}
    names = ("latents", "text", "prior", "dropped", "timestep", "size", "crop", "rows", "columns", "slots")
    return Part("dit", ExplicitDenoiser(model), args, dynamic, letters, names, "sequence_parallel")


def parts(config: dict[str, Any], dtype: torch.dtype) -> list[Part]:
    """The one part of the transformer that `config` describes. Raises ConfigError, UsageError."""
    return [dit_part(build(config, dtype), dtype)]
