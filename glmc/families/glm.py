"""GLM-4-9B as first published: dense, RoPE on pairs over half of each head, two norms a layer."""

from __future__ import annotations

from typing import Any

from glmc.families import glm4
from glmc.families.counts import Counts, decoder, grouped_attention
from glmc.families.fields import Dims, text_dims

# GLM-4's epsilon is 1.5625e-07: a norm fusion that lists epsilons misses it.
TINY = {**glm4.TINY, "model_type": "glm", "architectures": ["GlmForCausalLM"], "rms_norm_eps": 1.5625e-07}


def read(config: dict[str, Any]) -> Dims:
    return text_dims(config)


def promises(dims: Dims) -> dict[str, Counts]:
    return decoder(dims, grouped_attention(dims.qk_norm))


recipe = glm4.recipe
leftovers = glm4.leftovers
