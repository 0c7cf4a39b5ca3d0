"""GLM-4.5, 4.6, 4.7 and Air: leading dense layers, then experts beside a shared one; RoPE on halves; QK-norm or none."""

from __future__ import annotations

import re
from typing import Any

from glmc.checkpoint.recipe import Concatenate, Recipe, Stack, Take
from glmc.errors import ConfigError
from glmc.families.fields import Dims, flag, integer, number, scopes, text_dims

TINY = {
    "model_type": "glm4_moe", "architectures": ["Glm4MoeForCausalLM"], "hidden_size": 48, "intermediate_size": 72,
    "moe_intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
    "head_dim": 16, "vocab_size": 131, "max_position_embeddings": 512, "rms_norm_eps": 1e-05, "attention_bias": True,
    "partial_rotary_factor": 0.5, "rope_theta": 1000000.0, "use_qk_norm": True, "n_routed_experts": 8,
    "num_experts_per_tok": 3, "n_shared_experts": 1, "n_group": 2, "topk_group": 1, "norm_topk_prob": True,
    "routed_scaling_factor": 2.5, "first_k_dense_replace": 1, "tie_word_embeddings": False, "pad_token_id": 0,
    "eos_token_id": [1],
}
_EXPERTS = re.compile(r"^(model\.layers\.\d+\.mlp\.experts)\.(gate_up_proj|down_proj)$")


def read(config: dict[str, Any]) -> Dims:
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
    dense = integer(config, "first_k_dense_replace", low=0, high=1024, default=1)
    return text_dims(
        config, qk_norm=flag(config, "use_qk_norm", False), experts=experts, experts_per_token=top,
        moe_intermediate=integer(config, "moe_intermediate_size"),
        dense_layers=min(dense, integer(config, "num_hidden_layers", high=1024)))


def promises(dims: Dims) -> dict[str, dict[str, int]]:
    layer = {"rms_norm": 4, "qk_norm_rope": 2} if dims.qk_norm else {"rms_norm": 2}
    layer |= {"rope_half": 2, "add_rms_norm": 2}
    made = scopes(dims, {**layer, "add_rms_norm": 1}, layer, {"rms_norm": 1, "add_rms_norm": 1})
    for i in range(dims.layers):
        made[f"layers.{i}"]["silu_mul"] = 1 if i < dims.dense_layers else 2
    return made


def recipe(name: str, dims: Dims) -> Recipe:
    found = _EXPERTS.match(name)
    if not found:
        return Take("model.embed_tokens.weight" if dims.tied and name == "lm_head.weight" else name)
    experts = [f"{found[1]}.{e}" for e in range(dims.experts)]
    if found[2] == "down_proj":
        return Stack(tuple(Take(f"{e}.down_proj.weight") for e in experts))
    return Stack(tuple(
        Concatenate((Take(f"{e}.gate_proj.weight"), Take(f"{e}.up_proj.weight")), 0) for e in experts))


def leftovers(dims: Dims) -> tuple[str, ...]:
    """Besides frequencies: the layers past the last, which predict further tokens (MTP)."""
    tied = (r"lm_head\.weight",) if dims.tied else ()
    return (r".*\.rotary_emb\.inv_freq", rf"model\.layers\.{dims.layers}\..*", *tied)
