"""The random models that peers are compared on, and a command that writes their checkpoints.

    python bench/peers/models.py NAME FOLDER [--seed N]

The dense model is checkpoints.py's own GLM4_220M; the mixture of experts is here.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from checkpoints import GLM4_220M, randomised, write

GLM45_600M = {
    "model_type": "glm4_moe", "architectures": ["Glm4MoeForCausalLM"], "hidden_act": "silu", "attention_bias": False,
    "use_qk_norm": True, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0,
    "tie_word_embeddings": False, "max_position_embeddings": 4096, "torch_dtype": "bfloat16", "pad_token_id": 0,
    "eos_token_id": None, "hidden_size": 1024, "num_hidden_layers": 10, "first_k_dense_replace": 1,
    "intermediate_size": 4096, "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 128,
    "vocab_size": 32000, "n_routed_experts": 32, "num_experts_per_tok": 4, "n_shared_experts": 1,
    "moe_intermediate_size": 512, "n_group": 1, "topk_group": 1, "norm_topk_prob": True,
    "routed_scaling_factor": 1.0, "num_nextn_predict_layers": 0,
}
"""A GLM-4.5 in small: 592 M parameters, of which a token reads 164 M besides the embedding.

No layer for multi-token prediction: neither transformers' class nor llama.cpp's graph would run it.
"""

MODELS = {"glm4-220m": GLM4_220M, "glm45-600m": GLM45_600M, "glm45-600m-even": GLM45_600M}
"""`even`: the router's correction biases are a tenth. As `fill` draws them they outweigh what the router sees: of 32 experts
some take 850 of 1,024 tokens and ten none; a tenth makes it 50 to 270, as training aims at."""


def even(folder: Path, config: dict[str, Any], model: Any) -> None:
    """Save `model` again with its correction biases scaled down."""
    for layer in model.model.layers[config["first_k_dense_replace"]:]:
        layer.mlp.gate.e_score_correction_bias.mul_(0.1)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("name", choices=MODELS)
    options.add_argument("folder", type=Path)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    config = MODELS[given.name]
    if config["model_type"] == "glm4":
        write(given.folder, config, given.seed)
    else:
        model = randomised(given.folder, config, given.seed)
        if given.name.endswith("-even"):
            even(given.folder, config, model)
    print(json.dumps({"bytes": sum(file.stat().st_size for file in given.folder.glob("*.safetensors"))}))


if __name__ == "__main__":
    main()
