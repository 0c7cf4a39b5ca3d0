"""Teaches optimum-intel to export glm4_moe, which it does not know: the experts as it traces those of its own mixtures.

Importing this registers the export. What it traces is the published class; only the loop over experts is replaced, by the
batched products (optimum's own function) that OpenVINO then fuses.
"""

from __future__ import annotations

from typing import Any

from optimum.exporters.openvino.model_configs import Qwen3OpenVINOConfig, register_in_tasks_manager
from optimum.exporters.openvino.model_patcher import OVDecoderModelPatcher, lfm2_moe_experts_forward
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeNaiveMoe


class Glm4MoePatcher(OVDecoderModelPatcher):
    """While tracing, the experts run as batched products over all of them."""

    def __enter__(self) -> None:
        super().__enter__()
        self.published = Glm4MoeNaiveMoe.forward
        Glm4MoeNaiveMoe.forward = lfm2_moe_experts_forward

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        Glm4MoeNaiveMoe.forward = self.published


@register_in_tasks_manager("glm4_moe", "text-generation", "text-generation-with-past", library_name="transformers")
class Glm4MoeExport(Qwen3OpenVINOConfig):
    """Inputs, outputs and cache are those of Qwen3: grouped heads of a width of their own."""

    _MODEL_PATCHER = Glm4MoePatcher
