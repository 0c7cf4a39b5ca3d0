"""OpenVINO IRs of a checkpoint: the weights at 16 bits, int8 and int4, as optimum-intel exports them by default.

    PYTHON bench/peers/openvino_files.py CHECKPOINT FOLDER [--types bf16,int8,int4]

Runs in OpenVINO's environment. `bf16` keeps the checkpoint's own numbers; `int8` is optimum's 8 bits a channel; `int4` its
4 bits in groups of 128 (where rows do not divide into these, of the largest power of two that fits), asymmetric, every layer
(ratio 1), the embedding and the head at 8 bits, without calibration data. GenAI does not start without a tokenizer, so each
folder gets one of made-up words.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import openvino as ov
import openvino_glm4_moe  # noqa: F401  it registers the export of glm4_moe
import torch
from openvino_tokenizers import convert_tokenizer
from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WEIGHTS: dict[str, Any] = {"bf16": None, "int8": OVWeightQuantizationConfig(bits=8),
                           "int4": OVWeightQuantizationConfig(bits=4, ratio=1.0, group_size_fallback="adjust")}


def tokenizer(folder: Path, size: int) -> None:
    """Write a byte-level tokenizer of `size` words, of which no text needs more than the first 256."""
    words = sorted(pre_tokenizers.ByteLevel.alphabet())
    words += [f"t{index}" for index in range(len(words), size)]
    made = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    whole = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=words[-1], pad_token=words[0])
    for model, name in zip(convert_tokenizer(whole, with_detokenizer=True), ("tokenizer", "detokenizer"), strict=True):
        ov.save_model(model, folder / f"openvino_{name}.xml")


def export(checkpoint: Path, folder: Path, kind: str) -> int:
    """Write one IR; returns the bytes of its weights."""
    asked = {"quantization_config": WEIGHTS[kind]} if WEIGHTS[kind] is not None else {"load_in_8bit": False}
    model = OVModelForCausalLM.from_pretrained(checkpoint, export=True, compile=False, torch_dtype=torch.bfloat16, **asked)
    model.save_pretrained(folder)
    tokenizer(folder, model.config.vocab_size)
    return (folder / "openvino_model.bin").stat().st_size


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("checkpoint", type=Path)
    options.add_argument("folder", type=Path)
    options.add_argument("--types", default="bf16,int8,int4")
    given = options.parse_args()
    print(json.dumps({kind: export(given.checkpoint, given.folder / kind, kind) for kind in given.types.split(",")}))


if __name__ == "__main__":
    main()
