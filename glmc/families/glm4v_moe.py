"""GLM-4.5V and GLM-4.6V: the text model of GLM-4.5-Air with RoPE on halves over three axes, beside a vision tower."""

from __future__ import annotations

from typing import Any

from glmc.checkpoint.recipe import Recipe
from glmc.errors import ConfigError
from glmc.families import glm4_moe, nested
from glmc.families.counts import Counts, decoder, grouped_attention
from glmc.families.fields import Dims, flag, routed

TINY = {
    "model_type": "glm4v_moe", "architectures": ["Glm4vMoeForConditionalGeneration"], "tie_word_embeddings": False,
    "text_config": {
        **nested.TEXT, "model_type": "glm4v_moe_text", "head_dim": 16, "num_attention_heads": 6, "num_key_value_heads": 2,
        "hidden_size": 48, "attention_bias": True, "moe_intermediate_size": 24, "n_routed_experts": 8,
        "num_experts_per_tok": 3, "n_shared_experts": 1, "n_group": 2, "topk_group": 1, "norm_topk_prob": True,
        "routed_scaling_factor": 2.5, "first_k_dense_replace": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
                            "mrope_section": [1, 2, 3]},
    },
    "vision_config": {**nested.VISION, "model_type": "glm4v_moe_vision", "out_hidden_size": 48},
    "image_token_id": 120, "video_token_id": 121, "image_start_token_id": 122, "image_end_token_id": 123,
    "video_start_token_id": 124, "video_end_token_id": 125,
}


def read(config: dict[str, Any]) -> Dims:
    text = nested.text_of(config)
    for name in ("use_qk_norm", "qk_layernorm"):
        if flag(text, name, False):
            raise ConfigError("the published class has no norm of queries and keys", file="config.json",
                              field=f"text_config.{name}", expected="false", found=True)
    return nested.read_text(config, partial=0.5, **routed(text))


def promises(dims: Dims) -> dict[str, Counts]:
    return decoder(dims, grouped_attention(dims.qk_norm))


def recipe(name: str, dims: Dims) -> Recipe:
    return glm4_moe.experts(name, dims) or nested.recipe(name, dims)


leftovers = nested.leftovers
