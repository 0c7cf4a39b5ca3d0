"""The bytes that a decode step must read, from a configuration alone: weights as an artefact keeps them, and the cache."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from typing import Any

FORMS = {"mxfp4": "MX4", "fp8": "F8", "nvfp4": "NV4"}
"""A kind of `pour.py` -> the form in which its routed experts stay; everything else is bfloat16."""


@dataclass(frozen=True)
class Weights:
    """Bytes of all routed experts, of the embedding, and of the rest, which every step reads."""

    routed: int
    embedding: int
    rest: int

    @property
    def total(self) -> int:
        return self.routed + self.embedding + self.rest


def distinct(experts: int, top: int, rows: int) -> float:
    """How many experts `rows` tokens are expected to choose together, each `top` of them, all choices alike likely."""
    return experts * (1 - (1 - top / experts) ** rows)


def weights(config: dict[str, Any], kind: str = "bfloat16") -> Weights:
    """Of an artefact for a GPU whose checkpoint is of a kind of `pour.py`."""
    return _weights(json.dumps(config), kind)


@functools.cache
def _weights(config: str, kind: str) -> Weights:
    import torch

    from glmc import published
    from glmc.kernels.dequantise import stored

    sizes = {"routed": 0, "embedding": 0, "rest": 0}
    for name, tensor in published.build(json.loads(config), torch.bfloat16).state_dict().items():
        routed = ".mlp.experts." in name
        coded = routed and kind != "bfloat16"
        size = math.prod(stored(FORMS[kind], tuple(tensor.shape))[1]) if coded else tensor.numel() * tensor.element_size()
        sizes["routed" if routed else "embedding" if name.endswith("embed_tokens.weight") else "rest"] += size
    return Weights(**sizes)


def cached(config: dict[str, Any]) -> int:
    """Bytes of the cache of one slot, keys and values in bfloat16."""
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return 4 * config["num_hidden_layers"] * config["num_key_value_heads"] * width


def step(config: dict[str, Any], rows: int, slots: float, kind: str = "bfloat16") -> float:
    """Bytes of a step of `rows` tokens over `slots` filled slots each: of the experts those that it is expected to touch, of
    the embedding a row a token."""
    found, experts = weights(config, kind), config.get("n_routed_experts") or 0
    share = distinct(experts, config["num_experts_per_tok"], rows) / experts if experts else 0
    return found.rest + share * found.routed + rows * (found.embedding / config["vocab_size"] + slots * cached(config))


def fitting(config: dict[str, Any], kind: str, scratch: float, memory: float, tokens: int) -> int:
    """The most layers of the model, all if they fit: `scratch` bytes for checkpoint and artefact, which may share what is not
    coded, and `memory` bytes on the GPU for weights, a cache of `tokens` slots in all rows, and a tenth to work in."""
    most = config["num_hidden_layers"]
    for layers in range(most, 1, -1):
        cut = config | {"num_hidden_layers": layers}
        found = weights(cut, kind)
        held = found.total + tokens * cached(cut)
        if found.total + (found.routed if kind != "bfloat16" else 0) <= scratch and held <= 0.9 * memory:
            return layers
    return 1
