"""Stock transformers models through `torch.compile(..., backend="glmc")`, for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import models
import torch
from torch import fx, nn

INDUCTOR = "torch._inductor.compile_fx.compile_fx"


class Plain:
    """Stands in for Inductor: runs the graph as it is and keeps it."""

    def __init__(self) -> None:
        self.graphs: list[fx.GraphModule] = []

    def __call__(self, graph: fx.GraphModule, inputs: list[Any]) -> Callable:
        self.graphs.append(graph)
        return graph.forward


def stock(variant: str, **changes: Any) -> tuple[dict[str, Any], nn.Module]:
    """The published class with the defaults of transformers (sdpa, its own experts) and random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    family, differs = models.VARIANTS[variant]
    config = models.tiny_config(family, **{**differs, **changes})
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32).eval()
    model.load_state_dict(models.randomised(config).state_dict())
    assert model.config._attn_implementation == "sdpa"
    return config, model


def ids(config: dict[str, Any], length: int, rows: int = 1) -> torch.Tensor:
    return torch.randint(2, config["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(length))


def apart(compiled, model, tokens) -> float:
    """The largest difference of the logits from eager's."""
    with torch.no_grad():
        return float((compiled(tokens).logits - model(tokens).logits).abs().max())
