"""Strict reading of config.json's fields: right type, within bounds, consistent with each other, or a ConfigError."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glmc.checkpoint.scheme import METHODS
from glmc.errors import ConfigError

if TYPE_CHECKING:
    from glmc.families.pictures import Pictures
    from glmc.families.towers import Tower


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
    sections: tuple[int, ...] = ()
    """Lanes of time, height and width where positions have three axes, in the order that `layout` names."""
    layout: str = "chunked"
    indexers: tuple[str, ...] = ()
    """Of each layer with latent attention: its indexer is its own ("full"), taken over ("shared"), or there is "none"."""
    index_topk: int = 0
    """The slots that an indexer chooses, 0 without one."""
    quantised: str | None = None
    """How config.json says that the checkpoint is quantised; all sizes here are those of the model as it was before."""
    tower: Tower | None = None
    """The vision tower beside the text model."""
    pictures: Pictures | None = None
    """The diffusion half behind an autoregressive model, where the checkpoint has it."""
    cached: int = 0
    """Numbers that one token leaves in the cache, over all layers, where this is not 2 * layers * kv_heads * head_dim."""


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


def quantised(config: dict[str, Any]) -> str | None:
    """The method of `quantization_config`, None where there is none. Raises ConfigError unless it is an object."""
    found = config.get("quantization_config")
    if found is None:
        return None
    if not isinstance(found, dict):
        raise ConfigError("the field is not an object", file="config.json", field="quantization_config", found=found)
    return str(found.get("quant_method", "a method without a name"))


def notes(dims: Dims) -> list[str]:
    """What is said about a quantised checkpoint."""
    if dims.quantised is None:
        return []
    if dims.quantised not in METHODS:
        return [f"the checkpoint is quantised ({dims.quantised}); it is planned as if it were not, and it is not compiled: "
                f"only {', '.join(METHODS)} are read"]
    return [f"the checkpoint is quantised ({dims.quantised}); all sizes are those of its weights expanded to the dtype"]


def _rotary(config: dict[str, Any], head_dim: int, partial: float) -> int:
    rope = rope_fields(config)
    number(rope, "rope_theta", 0.0, 1e12, 10000.0)
    choice(rope, "rope_type", ("default",), "default")
    rotary = int(head_dim * number(rope, "partial_rotary_factor", 0.0, 1.0, partial))
    if rotary < 2 or rotary % 2:
        raise ConfigError("the rotary width must be even and at least 2", file="config.json",
                          field="partial_rotary_factor", found=f"{rotary} of head_dim {head_dim}")
    return rotary


def routed(config: dict[str, Any], dense_default: int = 1) -> dict[str, Any]:
    """The fields of Dims about experts. Raises ConfigError naming the field that does not fit."""
    experts, top = integer(config, "n_routed_experts", high=4096), integer(config, "num_experts_per_tok", high=4096)
    groups, kept = integer(config, "n_group", default=1), integer(config, "topk_group", default=1)
    if top > experts:
        raise ConfigError("more experts a token than experts", file="config.json", field="num_experts_per_tok",
                          expected=f"at most n_routed_experts = {experts}", found=top)
    if experts % groups or kept > groups or experts // groups < 2 or top > kept * (experts // groups):
        raise ConfigError("the groups of experts do not fit", file="config.json", field="n_group",
                          expected="a divisor of n_routed_experts, at least 2 experts a group, topk_group of them enough",
                          found=f"n_group {groups}, topk_group {kept}, n_routed_experts {experts}")
    integer(config, "n_shared_experts", high=64, default=1)
    number(config, "routed_scaling_factor", 0.0, 1e4, 1.0)
    flag(config, "norm_topk_prob", True)
    choice(config, "scoring_func", ("sigmoid",), "sigmoid")
    choice(config, "topk_method", ("noaux_tc",), "noaux_tc")
    layers = integer(config, "num_hidden_layers", high=1024)
    dense = min(integer(config, "first_k_dense_replace", low=0, high=1024, default=dense_default), layers)
    kinds = config.get("mlp_layer_types")
    if kinds is not None:
        dense = kinds.count("dense") if isinstance(kinds, list) else -1
        if kinds != ["dense"] * dense + ["sparse"] * (layers - dense):
            raise ConfigError("dense layers must lead, experts follow in all others", file="config.json",
                              field="mlp_layer_types", expected=f"{layers} of dense, then sparse", found=kinds)
    return {"experts": experts, "experts_per_token": top, "moe_intermediate": integer(config, "moe_intermediate_size"),
            "dense_layers": dense}


def text_dims(config: dict[str, Any], partial: float = 0.5, **extra: Any) -> Dims:
    """What all text families share; partial: the class's own partial_rotary_factor. Raises ConfigError naming the field.

    A family whose heads have parts gives `head_dim`, the lanes of a whole head, and `rotary`, those that turn.
    """
    layers, hidden = integer(config, "num_hidden_layers", high=1024), integer(config, "hidden_size")
    heads = integer(config, "num_attention_heads", high=4096)
    kv_heads = integer(config, "num_key_value_heads", high=4096, default=heads)
    if "head_dim" not in extra:
        extra["head_dim"] = integer(config, "head_dim", low=2, high=4096, default=hidden // heads or 1)
        extra["rotary"] = _rotary(config, extra["head_dim"], partial)
    if heads % kv_heads:
        raise ConfigError("key heads must divide query heads", file="config.json", field="num_key_value_heads",
                          expected=f"a divisor of num_attention_heads = {heads}", found=kv_heads)
    choice(config, "hidden_act", ("silu",), "silu")
    return Dims(
        model_type=config["model_type"], layers=layers, hidden=hidden, heads=heads, kv_heads=kv_heads,
        intermediate=integer(config, "intermediate_size"), quantised=quantised(config),
        vocabulary=integer(config, "vocab_size"), max_positions=integer(config, "max_position_embeddings", high=1 << 24),
        eps=number(config, "rms_norm_eps", 0.0, 1.0), tied=flag(config, "tie_word_embeddings", False), **extra)
