"""A published model made to follow the layout of three-axis RoPE that its configuration asks for.

transformers computes the chunked layout whatever the keys say. Where they say otherwise, the rotary modules of the built
text model join their lanes by the axis map instead; how each angle then fills its two channels stays the module's own.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn

from glmc.axis_map import KEYS, axis_map, layout
from glmc.errors import ConfigError
from glmc.kernels.pick_lanes import cpu as pick_lanes


def follow(model: nn.Module) -> str:
    """Replace the joining of lanes on the rotary modules of `model` unless it is chunked; returns the layout.

    model: a published model, on any device, with `config`. Raises ConfigError for a model without three-axis positions,
    and for one whose rotary modules lay out their channels in no known way.
    """
    config: Any = model.config
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    asked = layout(rope)
    if asked == "chunked":
        return asked
    found: list[Any] = [m for m in model.modules() if hasattr(m, "mrope_section") and hasattr(m, "recomposition_frequencies")]
    if not found:
        raise ConfigError("the model has no three-axis positions that this key could lay out", file="config.json",
                          field=KEYS[0], found=f"{asked} for {type(model).__name__}")
    for module in found:
        axes = axis_map(module.mrope_section, module.inv_freq.shape[0], asked)
        module.recomposition_frequencies = MethodType(_joining(axes, _channels(module)), module)
    return asked


def _joining(axes: tuple[int, ...], channels: Callable[[torch.Tensor], torch.Tensor]) -> Callable:
    def recomposition_frequencies(self: nn.Module, freq: torch.Tensor) -> torch.Tensor:
        """freq [3, B, S, n] -> [B, S, 2n]."""
        return channels(torch.ops.glmc.pick_lanes(freq, axes))

    return recomposition_frequencies


def _halves(angles: torch.Tensor) -> torch.Tensor:
    return torch.cat([angles, angles], dim=-1)


def _pairs(angles: torch.Tensor) -> torch.Tensor:
    return angles.repeat_interleave(2, dim=-1)


def _channels(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """How the module spreads n angles over 2n channels, from what it does to distinct numbers in the chunked layout."""
    count = module.inv_freq.shape[0]
    freq = torch.arange(3.0 * count).reshape(3, 1, 1, count)
    joined = module.recomposition_frequencies(freq)
    lanes = pick_lanes.run(freq, axis_map(module.mrope_section, count, "chunked"))
    for channels in (_halves, _pairs):
        if torch.equal(joined, channels(lanes)):
            return channels
    raise ConfigError("the published rotary module spreads its angles in a way that is not known here",
                      file="config.json", field=KEYS[0], found=type(module).__name__)
