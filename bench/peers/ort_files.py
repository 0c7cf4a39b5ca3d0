"""A Llama of the dense model's size for ONNX Runtime GenAI, whose builder knows no GLM-4: random weights, int4.

    PYTHON bench/peers/ort_files.py CHECKPOINT FOLDER

Reads only the sizes of the checkpoint's configuration. What a Llama lacks (biases of queries, keys and values, two of the
four norms a layer, rotation of half the lanes) is little work. int4 in blocks of 32, products by int8 dot products
(accuracy level 4, which is the builder's way to its fastest CPU kernels). Runs in ONNX Runtime GenAI's environment.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SAME = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
        "vocab_size", "max_position_embeddings", "rms_norm_eps", "hidden_act")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("checkpoint", type=Path)
    options.add_argument("folder", type=Path)
    given = options.parse_args()
    config = json.loads((given.checkpoint / "config.json").read_text())
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{name: config[name] for name in SAME}, tie_word_embeddings=False,
                                         bos_token_id=1, eos_token_id=2, pad_token_id=0))
    words = Tokenizer(models.WordLevel({f"t{index}": index for index in range(config["vocab_size"])}, unk_token="t0"))
    with tempfile.TemporaryDirectory(prefix="glmc-bench-ort-") as scratch:
        model.save_pretrained(scratch)
        PreTrainedTokenizerFast(tokenizer_object=words, eos_token="t2", pad_token="t0").save_pretrained(scratch)
        subprocess.run([sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", scratch, "-o", str(given.folder),
                        "-p", "int4", "-e", "cpu", "-c", scratch, "--extra_options", "accuracy_level=4", "block_size=32"],
                       check=True)
    print(json.dumps({file.name: file.stat().st_size for file in sorted(given.folder.iterdir())}))


if __name__ == "__main__":
    main()
