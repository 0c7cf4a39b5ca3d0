"""GLM-Image's autoregressive part: a dense text model, RoPE on halves over three axes, a head over image tokens only.

Where the checkpoint is a whole pipeline, its diffusion half stands beside it: see glmc/families/pictures.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from glmc.checkpoint.recipe import Recipe
from glmc.errors import ConfigError
from glmc.families import nested, pictures
from glmc.families.counts import Counts
from glmc.families.fields import Dims, integer

TINY = {
    "model_type": "glm_image", "architectures": ["GlmImageForConditionalGeneration"], "tie_word_embeddings": False,
    "text_config": {
        **nested.TEXT, "model_type": "glm_image_text", "vocab_size": 270, "vision_vocab_size": 37, "eos_token_id": 31,
        "head_dim": 16, "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2, "attention_bias": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
                            "mrope_section": [1, 2, 3]},
    },
    "vision_config": {"model_type": "glm_image_vision", "hidden_size": 24, "depth": 2, "num_heads": 3,
                      "intermediate_size": 40, "hidden_act": "gelu", "image_size": 28, "patch_size": 7, "in_channels": 3,
                      "layer_norm_eps": 1e-06, "attention_bias": True},
    "vq_config": {"model_type": "glm_image_vqmodel", "embed_dim": 20, "latent_channels": 24, "num_embeddings": 29,
                  "in_channels": 3},
    "image_token_id": 120, "image_start_token_id": 30, "image_end_token_id": 31,
}


def read(config: dict[str, Any]) -> Dims:
    integer(nested.text_of(config), "vision_vocab_size", default=16512)
    dims = nested.read_text(config)
    if "components" not in config:
        return dims
    if dims.quantised is not None:
        raise ConfigError("a pipeline with a quantised component is not read", file="vision_language_encoder/config.json",
                          field="quantization_config", found=dims.quantised)
    made, book = pictures.read(config["components"]), config.get("vq_config") or {}
    if integer(book, "num_embeddings", default=16384) > made.dit.vocabulary:
        raise ConfigError("the transformer knows fewer tokens of images", file="vision_language_encoder/config.json",
                          field="vq_config.num_embeddings", expected=f"at most {made.dit.vocabulary}",
                          found=book.get("num_embeddings", 16384))
    return dataclasses.replace(dims, pictures=made)


def promises(dims: Dims) -> dict[str, Counts]:
    return nested.promises(dims) | (pictures.promises(dims.pictures) if dims.pictures else {})


def recipe(name: str, dims: Dims) -> Recipe:
    return pictures.recipe(name) if dims.pictures and name.startswith(pictures.FOLDERS) else nested.recipe(name, dims)


def leftovers(dims: Dims) -> tuple[str, ...]:
    """Besides what text models leave: the way back from codes to features, which nothing here takes."""
    return (r"model\.vqmodel\.post_quant_conv\..*", *nested.leftovers(dims), *(pictures.LEFTOVERS if dims.pictures else ()))
