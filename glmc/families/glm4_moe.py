"""GLM-4.5, 4.6, 4.7 and Air: leading dense layers, then experts beside a shared one; RoPE on halves; QK-norm or none."""

from __future__ import annotations

import re
from typing import Any

from glmc.checkpoint.recipe import Concatenate, Recipe, Stack, Take
from glmc.families.counts import Counts, decoder, grouped_attention
from glmc.families.fields import Dims, flag, routed, text_dims

TINY = {
    "model_type": "glm4_moe", "architectures": ["Glm4MoeForCausalLM"], "hidden_size": 48, "intermediate_size": 72,
    "moe_intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
    "head_dim": 16, "vocab_size": 131, "max_position_embeddings": 512, "rms_norm_eps": 1e-05, "attention_bias": True,
    "partial_rotary_factor": 0.5, "rope_theta": 1000000.0, "use_qk_norm": True, "n_routed_experts": 8,
    "num_experts_per_tok": 3, "n_shared_experts": 1, "n_group": 2, "topk_group": 1, "norm_topk_prob": True,
    "routed_scaling_factor": 2.5, "first_k_dense_replace": 1, "tie_word_embeddings": False, "pad_token_id": 0,
    "eos_token_id": [1],
}
_EXPERTS = re.compile(r"^(model\.(?:language_model\.)?layers\.\d+\.mlp\.experts)\.(gate_up_proj|down_proj)$")


def read(config: dict[str, Any]) -> Dims:
    return text_dims(config, qk_norm=flag(config, "use_qk_norm", False), **routed(config))


def promises(dims: Dims) -> dict[str, Counts]:
    return decoder(dims, grouped_attention(dims.qk_norm))


def recipe(name: str, dims: Dims) -> Recipe:
    return experts(name, dims) or Take("model.embed_tokens.weight" if dims.tied and name == "lm_head.weight" else name)


def experts(name: str, dims: Dims) -> Recipe | None:
    """How the parameter that holds all experts of a layer is made; None where `name` is none of these."""
    found = _EXPERTS.match(name)
    if not found:
        return None
    each = [f"{found[1]}.{e}" for e in range(dims.experts)]
    if found[2] == "down_proj":
        return Stack(tuple(Take(f"{e}.down_proj.weight") for e in each))
    return Stack(tuple(
        Concatenate((Take(f"{e}.gate_proj.weight"), Take(f"{e}.up_proj.weight")), 0) for e in each))


def leftovers(dims: Dims) -> tuple[str, ...]:
    """Besides frequencies: the layers past the last, which predict further tokens (MTP)."""
    tied = (r"lm_head\.weight",) if dims.tied else ()
    return (r".*\.rotary_emb\.inv_freq", rf"model\.layers\.{dims.layers}\..*", *tied)
