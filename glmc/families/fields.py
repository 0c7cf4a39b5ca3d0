"""Strict reading of config.json's fields: right type, within bounds, consistent with each other, or a ConfigError."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from glmc.errors import ConfigError


@dataclass(frozen=True)
class Dims:
    """The sizes of a text model. `dense_layers` lead; the others route to `experts` (0 where there are none)."""

    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary: int
    intermediate: int
    vocabulary: int
    max_positions: int
    eps: float
    tied: bool
    qk_norm: bool = False
    experts: int = 0
    experts_per_token: int = 0
    moe_intermediate: int = 0
    dense_layers: int = 0


def integer(config: dict[str, Any], name: str, low: int = 1, high: int = 1 << 22, default: int | None = None) -> int:
    """A whole number in [low, high]; booleans, floats and text are refused."""
    value = config.get(name, default)
    if value is None and default is not None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError("the field is missing or out of bounds", file="config.json", field=name,
                          expected=f"a whole number from {low} to {high}", found=value)
    return value


def number(config: dict[str, Any], name: str, low: float, high: float, default: float | None = None) -> float:
    """A finite number in (low, high]."""
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) \
            or not low < value <= high:
        raise ConfigError("the field is missing or out of bounds", file="config.json", field=name,
                          expected=f"a number above {low}, at most {high}", found=value)
    return float(value)


def flag(config: dict[str, Any], name: str, default: bool) -> bool:
    """True or false."""
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise ConfigError("the field is not true or false", file="config.json", field=name, found=value)
    return value


def choice(config: dict[str, Any], name: str, allowed: tuple[str, ...], default: str) -> str:
    """One of a closed set of names."""
    value = config.get(name, default)
    if value not in allowed:
        raise ConfigError("the field names something this family does not have", file="config.json", field=name,
                          expected=", ".join(allowed), found=value)
    return value


def rope_fields(config: dict[str, Any]) -> dict[str, Any]:
    """rope_theta, partial_rotary_factor and rope_type, from the top level or from `rope_parameters`."""
    inner = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(inner, dict):
        raise ConfigError("the field is not an object", file="config.json", field="rope_parameters", found=inner)
    merged: dict[str, Any] = {k: config[k] for k in ("rope_theta", "partial_rotary_factor") if k in config}
    merged.update(inner)
    if "type" in merged:
        merged.setdefault("rope_type", merged["type"])
    return merged


def text_dims(config: dict[str, Any], **extra: Any) -> Dims:
    """What all text families share. Raises ConfigError naming the field."""
    if "quantization_config" in config:
        raise ConfigError("quantised checkpoints are not read by this family yet", file="config.json",
                          field="quantization_config", hint="use the bfloat16 checkpoint")
    layers, hidden = integer(config, "num_hidden_layers", high=1024), integer(config, "hidden_size")
    heads = integer(config, "num_attention_heads", high=4096)
    kv_heads = integer(config, "num_key_value_heads", high=4096, default=heads)
    head_dim = integer(config, "head_dim", low=2, high=4096, default=hidden // heads or 1)
    if heads % kv_heads:
        raise ConfigError("key heads must divide query heads", file="config.json", field="num_key_value_heads",
                          expected=f"a divisor of num_attention_heads = {heads}", found=kv_heads)
    rope = rope_fields(config)
    number(rope, "rope_theta", 0.0, 1e12, 10000.0)
    choice(rope, "rope_type", ("default",), "default")
    rotary = int(head_dim * number(rope, "partial_rotary_factor", 0.0, 1.0, 0.5))
    if rotary < 2 or rotary % 2:
        raise ConfigError("the rotary width must be even and at least 2", file="config.json",
                          field="partial_rotary_factor", found=f"{rotary} of head_dim {head_dim}")
    choice(config, "hidden_act", ("silu",), "silu")
    return Dims(
        model_type=config["model_type"], layers=layers, hidden=hidden, heads=heads, kv_heads=kv_heads,
        head_dim=head_dim, rotary=rotary, intermediate=integer(config, "intermediate_size"),
        vocabulary=integer(config, "vocab_size"), max_positions=integer(config, "max_position_embeddings", high=1 << 24),
        eps=number(config, "rms_norm_eps", 0.0, 1.0), tied=flag(config, "tie_word_embeddings", False), **extra)


def scopes(dims: Dims, first: dict[str, int], others: dict[str, int], model: dict[str, int]) -> dict[str, dict[str, int]]:
    """Promises by scope: the first layer, every other layer, and what lies outside the layers."""
    return {"model": model, **{f"layers.{i}": dict(others if i else first) for i in range(dims.layers)}}
