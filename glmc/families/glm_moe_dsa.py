"""GLM-5 to GLM-5.3: latent attention over slots that an indexer chooses, dense layers, then experts beside a shared one."""

from __future__ import annotations

from typing import Any

from glmc.errors import ConfigError
from glmc.families import glm4_moe, latent
from glmc.families.counts import Counts, decoder, latent_attention
from glmc.families.fields import Dims, flag, integer, routed

TINY = {**latent.TINY, "model_type": "glm_moe_dsa", "architectures": ["GlmMoeDsaForCausalLM"], "first_k_dense_replace": 1,
        "index_head_dim": 14, "index_n_heads": 11, "index_topk": 6, "indexer_types": ["full", "full", "shared"],
        "n_routed_experts": 8}


def read(config: dict[str, Any]) -> Dims:
    integer(config, "moe_layer_freq", high=1, default=1)
    for name in ("rope_interleave", "indexer_rope_interleave"):
        if not flag(config, name, True):
            raise ConfigError("the published class turns pairs", file="config.json", field=name, expected="true", found=False)
    layers, width = integer(config, "num_hidden_layers", high=1024), latent.index_width(config)
    kinds = latent.indexers(config, layers)
    each = integer(config, "kv_lora_rank", high=1 << 16) + integer(config, "qk_rope_head_dim", low=0, high=4096)
    return latent.latent_dims(config, cached=layers * each + kinds.count("full") * width, indexers=kinds,
                              index_topk=integer(config, "index_topk", high=1 << 20), **routed(config, dense_default=3))


def promises(dims: Dims) -> dict[str, Counts]:
    return decoder(dims, lambda layer: latent_attention(dims.indexers[layer]))


recipe = glm4_moe.recipe
leftovers = glm4_moe.leftovers
