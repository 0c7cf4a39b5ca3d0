"""The vision tower in a family's configuration, every field that shapes it checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glmc.errors import ConfigError
from glmc.families.fields import choice, flag, integer, number

_TABLE = ("glm4v", "glm46v", "glmga", "glm4v_moe", "glm_image")
_QK_NORM = ("glm_ocr", "glm5_next")
_NO_ROPE = ("glm_image",)


@dataclass(frozen=True)
class Tower:
    """The sizes of a vision tower; `merge` squared patches become one token of the text model.

    table: a learned table of positions is sampled at the first block. rope: queries and keys turn by height and width.
    """

    blocks: int
    hidden: int
    heads: int
    head_dim: int
    intermediate: int
    channels: int
    patch: int
    frames: int
    merge: int
    eps: float
    bias: bool
    table: bool
    rope: bool
    qk_norm: bool

    @property
    def pixels(self) -> int:
        """Values of one patch."""
        return self.channels * self.frames * self.patch**2


def tower(config: Mapping[str, Any]) -> Tower | None:
    """The tower of config.json; None where it has none. Raises ConfigError naming the field."""
    inner = config.get("vision_config")
    if inner is None:
        return None
    name = config.get("model_type")
    if name not in (*_TABLE, *_QK_NORM):
        raise ConfigError("this family has no vision tower", file="config.json", field="vision_config", found=name)
    if not isinstance(inner, Mapping):
        raise ConfigError("the field is not an object", file="config.json", field="vision_config", found=inner)
    vision = dict(inner)
    rope, image = name not in _NO_ROPE, name == "glm_image"
    hidden, heads = integer(vision, "hidden_size"), integer(vision, "num_heads", high=4096)
    if hidden % heads:
        raise ConfigError("heads must divide the hidden size", file="config.json", field="vision_config.num_heads",
                          expected=f"a divisor of hidden_size = {hidden}", found=heads)
    if rope:
        _check_rope(vision, hidden // heads)
    patch, size = integer(vision, "patch_size", high=4096), integer(vision, "image_size", high=1 << 16)
    if size < patch:
        raise ConfigError("an image holds no patch", file="config.json", field="vision_config.image_size",
                          expected=f"at least patch_size = {patch}", found=size)
    choice(vision, "hidden_act", ("gelu",) if image else ("silu",), "gelu" if image else "silu")
    if name == "glm5_next":
        number(vision, "swiglu_limit", 0.0, 1e6, 10.0)
        integer(vision, "projection_intermediate_size", default=10240)
    if not image:
        integer(vision, "out_hidden_size")
    return Tower(
        blocks=integer(vision, "depth", high=1024), hidden=hidden, heads=heads, head_dim=hidden // heads,
        intermediate=integer(vision, "intermediate_size"), channels=integer(vision, "in_channels", high=64, default=3),
        patch=patch, frames=1 if image else integer(vision, "temporal_patch_size", high=64, default=2),
        merge=integer(vision, "spatial_merge_size", high=64, default=1 if image else 2),
        eps=number(vision, "layer_norm_eps" if image else "rms_norm_eps", 0.0, 1.0, 1e-6 if image else 1e-5),
        bias=flag(vision, "attention_bias", image or name in _QK_NORM), table=name in _TABLE, rope=rope,
        qk_norm=name in _QK_NORM)


def _check_rope(vision: dict[str, Any], head_dim: int) -> None:
    """Height and width each turn pairs of lanes in half a head."""
    if head_dim % 4:
        raise ConfigError("heads of a vision tower must have a multiple of 4 lanes", file="config.json",
                          field="vision_config.num_heads", found=f"heads of {head_dim}")
    fields = vision.get("rope_parameters") or {}
    if not isinstance(fields, dict):
        raise ConfigError("the field is not an object", file="config.json", field="vision_config.rope_parameters",
                          found=fields)
    choice(fields, "rope_type", ("axial",), "axial")
    number(fields, "rope_theta", 0.0, 1e12, 10000.0)
