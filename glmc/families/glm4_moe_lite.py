"""GLM-4.7-Flash: latent attention with RoPE on pairs, one leading dense layer, then experts beside a shared one."""

from __future__ import annotations

from typing import Any

from glmc.errors import ConfigError
from glmc.families import glm4_moe, latent
from glmc.families.counts import Counts, decoder, latent_attention
from glmc.families.fields import Dims, flag, routed

TINY = {**latent.TINY, "model_type": "glm4_moe_lite", "architectures": ["Glm4MoeLiteForCausalLM"],
        "first_k_dense_replace": 1, "rope_interleave": True}


def read(config: dict[str, Any]) -> Dims:
    flag(config, "rope_interleave", True)
    experts = routed(config)
    if experts["dense_layers"] != min(1, config["num_hidden_layers"]) and "mlp_layer_types" not in config:
        raise ConfigError("the published class makes the first layer dense and no other unless mlp_layer_types says so",
                          file="config.json", field="first_k_dense_replace", expected=1, found=experts["dense_layers"])
    return latent.latent_dims(config, own_head_dim=True, **experts)


def promises(dims: Dims) -> dict[str, Counts]:
    return decoder(dims, latent_attention())


recipe = glm4_moe.recipe
leftovers = glm4_moe.leftovers
