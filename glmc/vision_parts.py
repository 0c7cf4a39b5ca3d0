"""The vision tower of a published model, and its image tokenizer, as parts to be traced.

What crosses the boundary of a tower (P patches of F images; a video counts as one image a frame, as published):

    pixels     [P, C * T * p * p]   in the model's dtype; P is a multiple of merge * merge, in the published block order
    positions  int64 [P, 2]         row and column of each patch in its own image
    ends       int32 [F + 1]        0, then the patches up to the end of each image: attention stays inside an image
    grid       int64 [F, 3]         1, height and width in patches; only where a table of positions is sampled
    -> tokens  [P / merge / merge, hidden size of the text model]; without merging [P, hidden]

The published forward derives positions and ends from the grid, by loops over its values that no graph can hold; it takes
them as arguments as well, and `layout` makes them the published way.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn

from glmc.families.towers import Tower, tower
from glmc.kernels.attention_packed.cpu import run as attention_packed
from glmc.kernels.position_table.cpu import run as position_table
from glmc.parts import Part

_MOST = 1 << 20
# transformers hands over the bounds of the images, instead of splitting at them, to implementations with "flash" in the name.
_NAME = "glmc_flash_packed"
_CUBIC = {"bicubic": True, "bilinear": False}
"""How the published towers name their sampling of a table of positions -> whether it is cubic."""


def attention(module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
              attention_mask: torch.Tensor | None, scaling: float, cu_seq_lens_q: torch.Tensor, **_: Any):
    """Attention as transformers' interface wants it: query, key, value [1, H, P, D]; returns [1, P, H, D]."""
    out = attention_packed(query, key, value, cu_seq_lens_q, scaling)
    return out.transpose(1, 2).contiguous(), None


class ExplicitTower(nn.Module):
    """The published tower with the boundary of this module's docstring; a table of positions is sampled by one op."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.model: Any = nn.Module()
        self.model.model = nn.Module()
        self.model.model.visual = visual  # at its published path
        self.cubic = _CUBIC.get(getattr(getattr(visual, "embeddings", None), "interpolated_method", ""))
        for module in visual.modules():
            plain = getattr(type(module).forward, "__wrapped__", None)
            if plain is not None and hasattr(module, "inv_freq"):
                module.forward = MethodType(plain, module)  # without its no_grad, which would split the graph

    def forward(self, pixels: torch.Tensor, positions: torch.Tensor, ends: torch.Tensor,
                grid: torch.Tensor | None = None) -> torch.Tensor:
        cubic = self.cubic
        if cubic is not None and grid is not None:
            embeddings: Any = self.model.model.visual.embeddings
            table = embeddings.position_embedding.weight
            embeddings.forward = lambda patches, *_: patches + position_table(table, positions, ends, grid, cubic)
        # Nothing here reads `max_seqlen`; left out, it would be read from the values of `ends`.
        return self.model.model.visual(pixels, grid, position_ids=positions, cu_seqlens=ends, max_seqlen=1).pooler_output


class ExplicitTokenizer(nn.Module):
    """The published quantiser: features [1, C, H, W] of one image -> int64 [H * W], the nearest codes."""

    def __init__(self, vqmodel: nn.Module) -> None:
        super().__init__()
        self.model: Any = nn.Module()
        self.model.model = nn.Module()
        self.model.model.vqmodel = vqmodel  # at its published path

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.model.model.vqmodel.encode(features).image_tokens


def parts(model: Any, dtype: torch.dtype) -> list[Part]:
    """The parts beside the text of a published model on the meta device; none for a text model. Raises ConfigError.

    model: what `glmc.published.build` returns. Its tower is told to call packed attention from now on.
    """
    visual = getattr(model.model, "visual", None)
    dims = tower(model.config.to_dict())
    if visual is None or dims is None:
        return []
    made = [_tower(visual, dims, dtype)]
    if hasattr(model.model, "vqmodel"):
        made.append(_tokenizer(model.model.vqmodel, dtype))
    return made


def layout(grid: torch.Tensor, merge: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`positions` and `ends` of images or videos with `grid` int64 [N, 3], in the published block order."""
    from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids

    return get_vision_position_ids(grid, merge), get_vision_cu_seqlens(grid)


def frames(grid: torch.Tensor) -> torch.Tensor:
    """`grid` int64 [N, 3] of videos as one row a frame, [F, 3], as the published models hand it to their tower."""
    sizes = torch.repeat_interleave(grid[:, 1:], grid[:, 0], dim=0)
    return torch.cat([sizes.new_ones(sizes.shape[0], 1), sizes], dim=1)


def _tower(visual: Any, dims: Tower, dtype: torch.dtype) -> Part:
    from transformers import AttentionInterface

    AttentionInterface.register(_NAME, attention)
    visual.config._attn_implementation = _NAME
    tokens = torch.export.Dim("M" if dims.merge > 1 else "P", min=2, max=_MOST)
    images = torch.export.Dim("F", min=2, max=_MOST)
    patches = dims.merge**2 * tokens if dims.merge > 1 else tokens
    rows, count = 6 * dims.merge**2, 3
    args: list[torch.Tensor] = [
        torch.zeros(rows, dims.pixels, dtype=dtype, device="meta"), _integers(rows, 2),
        torch.zeros(count + 1, dtype=torch.int32, device="meta")]
    dynamic: list[Any] = [{0: patches}, {0: patches}, {0: images + 1}]
    if dims.table:
        args.append(_integers(count, 3))
        dynamic.append({0: images})
    names = ("pixels", "positions", "ends", "grid")[:len(args)]
    letters = {"M" if dims.merge > 1 else "P": (0, 0), "F": (2, 0)}
    return Part("vision", ExplicitTower(visual), tuple(args), tuple(dynamic), letters, names)


def _tokenizer(vqmodel: Any, dtype: torch.dtype) -> Part:
    height, width = (torch.export.Dim(letter, min=2, max=_MOST) for letter in "HW")
    args = (torch.zeros(1, vqmodel.config.latent_channels, 6, 10, dtype=dtype, device="meta"),)
    return Part("vq", ExplicitTokenizer(vqmodel), args, ({2: height, 3: width},), {"H": (0, 2), "W": (0, 3)}, ("features",))


def _integers(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int64, device="meta")
