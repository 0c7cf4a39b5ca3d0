"""GLM-OCR: a dense text model, RoPE on pairs of all lanes over three axes, beside a vision tower with QK-norm."""

from __future__ import annotations

from typing import Any

from glmc.families import nested
from glmc.families.fields import Dims

TINY = {
    "model_type": "glm_ocr", "architectures": ["GlmOcrForConditionalGeneration"], "tie_word_embeddings": False,
    "text_config": {**nested.TEXT, "model_type": "glm_ocr_text", "head_dim": 12, "hidden_size": 40,
                    "num_attention_heads": 6, "num_key_value_heads": 2},
    "vision_config": {**nested.VISION, "model_type": "glm_ocr_vision", "out_hidden_size": 40, "attention_bias": True},
    "image_token_id": 120, "video_token_id": 121, "image_start_token_id": 122, "image_end_token_id": 123,
    "video_start_token_id": 124, "video_end_token_id": 125,
}


def read(config: dict[str, Any]) -> Dims:
    return nested.read_text(config)


promises = nested.promises
recipe = nested.recipe
leftovers = nested.leftovers
