"""Models of text and images: their text model's configuration is an object inside config.json."""

from __future__ import annotations

from typing import Any

from glmc.checkpoint.recipe import Recipe, Take
from glmc.errors import ConfigError
from glmc.families.axes import with_axes
from glmc.families.counts import Counts, decoder, grouped_attention
from glmc.families.fields import Dims, flag, text_dims
from glmc.families.towers import tower

VISION = {
    "hidden_size": 24, "depth": 2, "num_heads": 3, "intermediate_size": 40, "hidden_act": "silu", "image_size": 28,
    "patch_size": 7, "out_hidden_size": 60, "rms_norm_eps": 1e-05, "spatial_merge_size": 2, "temporal_patch_size": 2,
}
"""A tiny vision tower beside the tiny text model below."""
TEXT = {
    "hidden_size": 60, "intermediate_size": 72, "num_hidden_layers": 3, "num_attention_heads": 5, "num_key_value_heads": 1,
    "vocab_size": 131, "max_position_embeddings": 512, "rms_norm_eps": 1e-05, "pad_token_id": 0, "eos_token_id": [1],
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0,
                        "mrope_section": [1, 2, 3]},
}
"""Heads of 12 lanes, of which all turn: 6 pairs, one by time, two by height, three by width."""


def text_of(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of the text model, with what the model around it says. Raises ConfigError."""
    inner = config.get("text_config")
    if not isinstance(inner, dict):
        raise ConfigError("the configuration has no text model", file="config.json", field="text_config", found=inner)
    tied = flag(config, "tie_word_embeddings", False) or flag(inner, "tie_word_embeddings", False)
    outer = {k: config[k] for k in ("quantization_config",) if k in config}
    return {**inner, **outer, "model_type": config["model_type"], "tie_word_embeddings": tied}


def read_text(config: dict[str, Any], partial: float = 1.0, whole_heads: bool = False, **extra: Any) -> Dims:
    """Dims of a text model with three-axis positions; its vision tower is checked too.

    partial: the class's own partial_rotary_factor. whole_heads: the class divides hidden_size by the heads, so another
    head_dim would turn other lanes than it makes. Raises ConfigError naming the field.
    """
    text = text_of(config)
    dims = text_dims(text, partial=partial, tower=tower(config), **extra)
    if (dims.hidden % dims.heads and "head_dim" not in text) or (whole_heads and dims.head_dim * dims.heads != dims.hidden):
        raise ConfigError("the heads must share out the hidden size", file="config.json", field="text_config.head_dim",
                          expected=f"num_attention_heads = {dims.heads} times it is hidden_size = {dims.hidden}",
                          found=dims.head_dim)
    return with_axes(dims, text)


def promises(dims: Dims) -> dict[str, Counts]:
    """Four norms a layer, around attention and around the MLP."""
    return decoder(dims, grouped_attention(dims.qk_norm), norms=4)


def recipe(name: str, dims: Dims) -> Recipe:
    return Take("model.language_model.embed_tokens.weight" if dims.tied and name == "lm_head.weight" else name)


def leftovers(dims: Dims) -> tuple[str, ...]:
    """Besides frequencies: the layers past the last, which predict further tokens (MTP)."""
    tied = (r"lm_head\.weight",) if dims.tied else ()
    return (r".*\.inv_freq", rf"model\.language_model\.layers\.{dims.layers}\..*", *tied)
