"""GLM-4-0414: dense, RoPE on pairs over half of each head, norms after attention and after the MLP as well."""

from __future__ import annotations

from typing import Any

from glmc.checkpoint.recipe import Recipe, Take
from glmc.families.counts import Counts, decoder, grouped_attention
from glmc.families.fields import Dims, text_dims

TINY = {
    "model_type": "glm4", "architectures": ["Glm4ForCausalLM"], "hidden_size": 48, "intermediate_size": 72,
    "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 131,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-05, "attention_bias": True, "partial_rotary_factor": 0.5,
    "rope_theta": 10000.0, "tie_word_embeddings": False, "pad_token_id": 0, "eos_token_id": [1],
}


def read(config: dict[str, Any]) -> Dims:
    return text_dims(config)


def promises(dims: Dims) -> dict[str, Counts]:
    return decoder(dims, grouped_attention(dims.qk_norm), norms=4)


def recipe(name: str, dims: Dims) -> Recipe:
    return Take("model.embed_tokens.weight" if dims.tied and name == "lm_head.weight" else name)


def leftovers(dims: Dims) -> tuple[str, ...]:
    tied = (r"lm_head\.weight",) if dims.tied else ()
    return (r".*\.rotary_emb\.inv_freq", *tied)
