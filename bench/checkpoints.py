"""Random checkpoints to measure with: every parameter drawn from a seed, written without ever holding the model.

    python bench/checkpoints.py CONFIG.json FOLDER [--seed N]
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

DENSE = {
    "model_type": "glm4", "architectures": ["Glm4ForCausalLM"], "hidden_act": "silu", "attention_bias": True,
    "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "max_position_embeddings": 4096, "torch_dtype": "bfloat16", "pad_token_id": 0, "eos_token_id": None,
}
"""A glm4 without its sizes. No stop token: every measured generation has the length asked for."""

GLM4_220M = {**DENSE, "hidden_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 16,
             "num_key_value_heads": 2, "head_dim": 64, "intermediate_size": 3424, "vocab_size": 32000}


def fill(name: str, tensor, generator) -> None:
    """Random values of a size that keeps activations near 1: norms around 1, biases 0.3, matrices
    1/sqrt(inputs), embeddings 1."""
    import torch

    drawn = torch.randn(tensor.shape, generator=generator, device=generator.device)
    if "norm" in name:
        drawn = 1 + 0.3 * drawn
    elif "embed_tokens" not in name:
        drawn *= 0.3 if tensor.dim() == 1 else tensor.shape[-1] ** -0.5
    tensor.copy_(drawn.to(tensor.dtype))


def write(folder: Path, config: dict[str, Any], seed: int = 0, device: str = "cpu") -> int:
    """Write a checkpoint of a dense family in bfloat16, one safetensors file a layer; returns its bytes.

    device: where values are drawn. Holds one layer's tensors.
    The names are those of the published class, which dense checkpoints share.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {k: v for k, v in config.items() if k != "torch_dtype"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields), dtype=torch.bfloat16)
    shards: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in model.state_dict().items():
        layer = re.search(r"\.layers\.(\d+)\.", name)
        shards.setdefault(layer[1] if layer else name, {})[name] = tuple(tensor.shape)
    folder.mkdir(parents=True)
    generator = torch.Generator(device).manual_seed(seed)
    index: dict[str, str] = {}
    total = 0
    with torch.no_grad():
        for number, shapes in enumerate(shards.values(), 1):
            tensors = {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
            for name, tensor in tensors.items():
                fill(name, tensor, generator)
                total += tensor.nbytes
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            save_file(tensors, folder / file, metadata={"format": "pt"})
            index |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return total


def randomised(folder: Path, config: dict[str, Any], seed: int):
    """A bfloat16 model of any family in memory, random throughout, saved to `folder` as transformers saves it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    fields = {k: v for k, v in config.items() if k != "torch_dtype"}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields), dtype=torch.bfloat16).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        # state_dict also holds the router's correction bias, a buffer; frequencies are not in it and stay.
        for name, tensor in model.state_dict().items():
            fill(name, tensor, generator)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return model


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("config", type=Path)
    options.add_argument("folder", type=Path)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    print(json.dumps({"bytes": write(given.folder, json.loads(given.config.read_text()), given.seed)}))


if __name__ == "__main__":
    main()
