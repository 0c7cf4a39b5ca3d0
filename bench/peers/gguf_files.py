"""GGUF files of a checkpoint for llama.cpp: bf16 as it is, and what llama.cpp's own quantiser makes of it.

    PYTHON bench/peers/gguf_files.py CHECKPOINT FOLDER [--types bf16,Q8_0,Q4_0]

Runs in llama.cpp's environment (llama-cpp-python and gguf). Families: glm4 and glm4_moe. The keys and the names are those
of llama.cpp's convert_hf_to_gguf.py; there is no vocabulary, as prompts are ids. A type followed by "-pure" quantises every
matrix to that type, where llama.cpp would keep some, as the output head, at a wider one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

ARCHITECTURES = {"glm4": gguf.MODEL_ARCH.GLM4, "glm4_moe": gguf.MODEL_ARCH.GLM4_MOE}
TYPES = {"Q8_0": 7, "Q4_0": 2}
"""llama_ftype, which the bindings name LLAMA_FTYPE_MOSTLY_..."""


def tensors(checkpoint: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor, mapped from the files: bfloat16 as uint16, float32 as it is."""
    kinds = {"BF16": np.uint16, "F32": np.float32}
    for file in sorted(checkpoint.glob("*.safetensors")):
        whole = np.memmap(file, np.uint8, "r")
        length = int(whole[:8].view(np.uint64)[0])
        for name, entry in json.loads(whole[8:8 + length].tobytes()).items():
            if name == "__metadata__":
                continue
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            yield name, np.frombuffer(whole[begin:end].tobytes(), kinds[entry["dtype"]]).reshape(entry["shape"])


def widened(value: np.ndarray) -> np.ndarray:
    """As float32, exactly."""
    return value if value.dtype == np.float32 else (value.astype(np.uint32) << 16).view(np.float32)


def keys(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """The configuration in GGUF's words."""
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    rope = config.get("rope_parameters", config)  # newer checkpoints keep these fields together
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(config["head_dim"] * rope["partial_rotary_factor"]))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    if config["model_type"] == "glm4_moe":
        writer.add_expert_count(config["n_routed_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
        writer.add_expert_shared_count(config["n_shared_experts"])
        writer.add_leading_dense_block_count(config["first_k_dense_replace"])
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        writer.add_expert_weights_scale(config["routed_scaling_factor"])
        writer.add_expert_weights_norm(config["norm_topk_prob"])


def stacked(found: Iterator[tuple[str, np.ndarray]], experts: int) -> Iterator[tuple[str, np.ndarray]]:
    """The same tensors, the matrices of a layer's experts joined into one with the expert first."""
    waiting: dict[str, dict[int, np.ndarray]] = {}
    for name, value in found:
        before, marker, after = name.partition(".mlp.experts.")
        if not marker:
            yield name, value
            continue
        number, _, rest = after.partition(".")
        joined = f"{before}{marker}{rest}"
        waiting.setdefault(joined, {})[int(number)] = value
        if len(waiting[joined]) == experts:
            parts = waiting.pop(joined)
            yield joined, np.stack([parts[index] for index in range(experts)])
    if waiting:
        raise ValueError(f"experts are missing of {', '.join(waiting)}")


def write(checkpoint: Path, file: Path) -> None:
    """The bf16 file: matrices as they are, vectors and the router's matrix in float32, as llama.cpp's converter does."""
    config = json.loads((checkpoint / "config.json").read_text())
    architecture = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[architecture])
    keys(writer, config)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    for name, value in stacked(tensors(checkpoint), config.get("n_routed_experts", 0)):
        base = name.replace(".e_score_correction_bias", ".e_score_correction.bias")
        target = names.get_name(base, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ValueError(f"llama.cpp has no name for {name}")
        if value.ndim == 1 or name.endswith(".mlp.gate.weight"):
            writer.add_tensor(target, widened(value))
        else:
            writer.add_tensor(target, value.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantise(source: Path, file: Path, kind: str) -> None:
    """What llama-quantize does, through the library."""
    params = llama_cpp.llama_model_quantize_default_params()
    name, _, pure = kind.partition("-")
    params.ftype, params.pure, params.nthread = TYPES[name], pure == "pure", 2
    if code := llama_cpp.llama_model_quantize(str(source).encode(), str(file).encode(), params):
        raise RuntimeError(f"llama.cpp cannot quantise to {kind}: {code}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("checkpoint", type=Path)
    options.add_argument("folder", type=Path)
    options.add_argument("--types", default="bf16,Q8_0,Q4_0")
    given = options.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    base = given.folder / "bf16.gguf"
    if not base.exists():
        write(given.checkpoint, base)
    for kind in given.types.split(","):
        if kind != "bf16":
            quantise(base, given.folder / f"{kind}.gguf", kind)
    print(json.dumps({file.name: file.stat().st_size for file in sorted(given.folder.glob("*.gguf"))}))


if __name__ == "__main__":
    main()
