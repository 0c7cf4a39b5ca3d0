"""Latent attention (MLA) and its sparse indexer in a family's configuration, every width checked."""

from __future__ import annotations

from typing import Any

from glmc.errors import ConfigError
from glmc.families.fields import Dims, choice, flag, integer, number, rope_fields, text_dims

TINY = {
    "hidden_size": 40, "intermediate_size": 72, "num_hidden_layers": 3, "num_attention_heads": 5, "num_key_value_heads": 5,
    "vocab_size": 131, "max_position_embeddings": 512, "rms_norm_eps": 1e-05, "attention_bias": False, "pad_token_id": 0,
    "eos_token_id": [1], "tie_word_embeddings": False, "q_lora_rank": 24, "kv_lora_rank": 20, "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8, "v_head_dim": 18, "moe_intermediate_size": 24, "n_routed_experts": 8, "num_experts_per_tok": 3,
    "n_shared_experts": 1, "n_group": 2, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "hidden_act": "silu",
}
"""Heads of 20 lanes with 8 that turn, values of 18, latents of 24 and 20."""


def latent_dims(config: dict[str, Any], turning: bool = True, own_head_dim: bool = False, **extra: Any) -> Dims:
    """Dims of a text model with latent attention. Raises ConfigError naming the field.

    turning: whether part of a head turns by position; without, `qk_rope_head_dim` must be 0. own_head_dim: the published
    class takes `head_dim` for `qk_rope_head_dim`, so the two must agree where both are given.
    """
    heads = integer(config, "num_attention_heads", high=4096)
    if integer(config, "num_key_value_heads", high=4096, default=heads) != heads:
        raise ConfigError("latent attention makes a key for every head", file="config.json", field="num_key_value_heads",
                          expected=heads, found=config["num_key_value_heads"])
    turned = integer(config, "qk_rope_head_dim", low=0, high=4096)
    if turned % 2 or (turned == 0) is turning:
        raise ConfigError("the rotary width does not fit this family", file="config.json", field="qk_rope_head_dim",
                          expected="even and at least 2" if turning else 0, found=turned)
    if own_head_dim and config.get("head_dim", turned) != turned:
        raise ConfigError("head_dim is another name for qk_rope_head_dim in this family", file="config.json",
                          field="head_dim", expected=turned, found=config["head_dim"])
    plain, rank = integer(config, "qk_nope_head_dim", high=4096), integer(config, "kv_lora_rank", high=1 << 16)
    integer(config, "v_head_dim", high=4096)
    integer(config, "q_lora_rank", high=1 << 16)
    flag(config, "attention_bias", False)
    rope = rope_fields(config)
    if turning:
        number(rope, "rope_theta", 0.0, 1e12, 10000.0)
    choice(rope, "rope_type", ("default",), "default")
    if number(rope, "partial_rotary_factor", 0.0, 1.0, 1.0) != 1.0:
        raise ConfigError("qk_rope_head_dim alone says what turns", file="config.json", field="partial_rotary_factor",
                          expected=1.0, found=rope["partial_rotary_factor"])
    layers = integer(config, "num_hidden_layers", high=1024)
    extra.setdefault("cached", layers * (rank + turned))
    return text_dims(config, head_dim=plain + turned, rotary=turned, **extra)


def indexers(config: dict[str, Any], layers: int) -> tuple[str, ...]:
    """ "full" or "shared" for each layer: whether it has an indexer of its own or takes over the choice before it.

    From `indexer_types`, else `index_topk_pattern`, else every `index_topk_freq`-th layer from `index_skip_topk_offset`,
    as transformers 5.23 reads them. Raises ConfigError for a layer that has nothing to take over.
    """
    found, field = config.get("indexer_types"), "indexer_types"
    if found is None and config.get("index_topk_pattern") is not None:
        found, field = config["index_topk_pattern"], "index_topk_pattern"
        if isinstance(found, str):
            found = [{"F": "full", "S": "shared"}.get(letter, letter) for letter in found]
    if found is None:
        every = max(integer(config, "index_topk_freq", low=0, default=1), 1)
        first = integer(config, "index_skip_topk_offset", low=0, default=2)
        found = ["shared" if max(i - first + 1, 0) % every else "full" for i in range(layers)]
    known = isinstance(found, list) and all(kind in ("full", "shared") for kind in found)
    if not known or len(found) != layers or found[0] != "full":
        raise ConfigError("the layers' indexers do not fit", file="config.json", field=field, found=found,
                          expected=f"{layers} times full or shared, the first full")
    return tuple(found)


def index_width(config: dict[str, Any]) -> int:
    """Lanes of an indexer's head, its other fields checked. Raises ConfigError naming the field."""
    integer(config, "index_n_heads", high=4096)
    integer(config, "index_topk", high=1 << 20)
    width = integer(config, "index_head_dim", low=2, high=4096)
    turned = integer(config, "qk_rope_head_dim", low=0, high=4096)
    if width < turned:
        raise ConfigError("an indexer's head must hold the lanes that turn", file="config.json", field="index_head_dim",
                          expected=f"at least qk_rope_head_dim = {turned}", found=width)
    return width
