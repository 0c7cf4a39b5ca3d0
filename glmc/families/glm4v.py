"""GLM-4.1V-Thinking and GLM-4.6V-Flash: a dense text model, RoPE on pairs over three axes, beside a vision tower."""

from __future__ import annotations

from typing import Any

from glmc.families import nested
from glmc.families.fields import Dims

TINY = {
    "model_type": "glm4v", "architectures": ["Glm4vForConditionalGeneration"], "tie_word_embeddings": False,
    "text_config": {**nested.TEXT, "model_type": "glm4v_text"},
    "vision_config": {**nested.VISION, "model_type": "glm4v_vision"},
    "image_token_id": 120, "video_token_id": 121, "image_start_token_id": 122, "image_end_token_id": 123,
    "video_start_token_id": 124, "video_end_token_id": 125,
}


def read(config: dict[str, Any]) -> Dims:
    return nested.read_text(config, whole_heads=True)


promises = nested.promises
recipe = nested.recipe
leftovers = nested.leftovers
