"""Packing a large checkpoint: memory, and throughput beside `cat` to the same disk.

    python bench/stream.py [--gigabytes 8] [--folder A_FOLDER_ON_THE_DISK]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import fresh_process
from compile_once import in_fresh_process
from report import Report, default_out

MEMORY_BAR, SHARE_BAR = 2.5, 0.5
SHARDS = 4
CONFIG: dict[str, Any] = {
    "model_type": "glm4_moe", "architectures": ["Glm4MoeForCausalLM"], "hidden_act": "silu", "attention_bias": True,
    "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 1024, "num_attention_heads": 32,
    "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-05,
    "partial_rotary_factor": 0.5, "rope_theta": 1000000.0, "use_qk_norm": True, "n_routed_experts": 64,
    "num_experts_per_tok": 6, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "norm_topk_prob": True,
    "routed_scaling_factor": 1.0, "first_k_dense_replace": 1, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "pad_token_id": 0, "eos_token_id": None}
HOW = ("a glm4_moe of random numbers in bfloat16, four safetensors files, compiled in a fresh process for target cpu, pages "
       "dropped from the cache before. `cat` copies the four files on the same disk and syncs, just before and just after. "
       "Throughput is the checkpoint's bytes over the seconds of packing (first byte read to last written), and over "
       "the whole compilation. GB are 1e9 bytes; memory is VmHWM")


def write(folder: Path, gigabytes: float) -> int:
    """Write the checkpoint; returns its bytes. Numbers come from one bank of random ones, read from other places each time."""
    import torch

    from glmc import published
    from glmc.families import glm4_moe

    layer = CONFIG["n_routed_experts"] * 3 * CONFIG["hidden_size"] * CONFIG["moe_intermediate_size"] * 2
    config = {**CONFIG, "num_hidden_layers": 1 + max(1, round((gigabytes * 1e9 - 5e8) / layer))}
    dims = glm4_moe.read(config)
    shapes: dict[str, list[int]] = {}
    for name, tensor in published.build(config, torch.bfloat16).state_dict().items():
        leaves = glm4_moe.recipe(name, dims).names()
        rows = tensor.shape[1] // 2 if name.endswith("experts.gate_up_proj") else tensor.shape[1] if len(leaves) > 1 else 0
        for leaf in leaves:
            shapes[leaf] = [rows, tensor.shape[2]] if len(leaves) > 1 else list(tensor.shape)
    bank = torch.randn(1 << 25, generator=torch.Generator().manual_seed(0)).bfloat16().view(torch.uint8).numpy()
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    names, index, total, at = list(shapes), {}, 0, 0
    sizes = {n: torch.Size(s).numel() * (4 if n.endswith("correction_bias") else 2) for n, s in shapes.items()}
    each = sum(sizes.values()) / SHARDS
    for number in range(SHARDS):
        file, mine = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors", []
        while names and (number == SHARDS - 1 or sum(sizes[n] for n in mine) < each):
            mine.append(names.pop(0))
        begin, entries = 0, {}
        for name in mine:
            entries[name] = {"dtype": "F32" if name.endswith("correction_bias") else "BF16", "shape": shapes[name],
                             "data_offsets": [begin, begin + sizes[name]]}
            begin += sizes[name]
            index[name] = file
        header = json.dumps(entries).encode()
        with open(folder / file, "wb") as out:
            out.write(len(header).to_bytes(8, "little") + header)
            for name in mine:
                left = sizes[name]
                while left:  # an even offset keeps numbers whole
                    at = (at * 1103515245 + 12345) % (len(bank) // 2) // 4 * 4
                    piece = bank[at:at + left]
                    out.write(piece)
                    left -= len(piece)
        total += begin
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": index}))
    return total


def forget(folder: Path) -> bool:
    """Drop the files' pages from the system's cache."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def cat(checkpoint: Path, out: Path) -> float:
    """Seconds of `cat` of all shards into one file, synced."""
    forget(checkpoint)
    began = time.perf_counter()
    with open(out, "wb") as file:
        subprocess.run(["cat", *sorted(map(str, checkpoint.glob("*.safetensors")))], stdout=file, check=True)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    out.unlink()
    return seconds


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--gigabytes", type=float, default=8.0)
    options.add_argument("--folder", type=Path, help="where the checkpoint and the artefact go; a temporary folder otherwise")
    options.add_argument("--write-only", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--out", type=Path, default=default_out("stream"))
    given = options.parse_args()
    if given.write_only:
        print(json.dumps({"bytes": write(given.write_only, given.gigabytes)}))
        return
    report = Report("stream", given.out)
    folder = Path(tempfile.mkdtemp(prefix="glmc-bench-", dir=given.folder))
    try:
        checkpoint = folder / "checkpoint"
        size = fresh_process.run(fresh_process.python(__file__, "--write-only", checkpoint, "--gigabytes", given.gigabytes),
                                 ).json()["bytes"]
        copies = [cat(checkpoint, folder / "copy")]
        forget(checkpoint)
        made, finished = in_fresh_process(checkpoint, folder / "cpu.glmc", "cpu", watch=True)
        copies.append(cat(checkpoint, folder / "copy"))
        packing, copy = made["stages"]["pack weights"], sum(copies) / len(copies)
        report.add("checkpoint", size / 1e9, "GB")
        report.add("peak memory", made["memory"]["peak"] / 1e9, "GB", MEMORY_BAR)
        report.add("cat", size / 1e9 / copy, "GB/s")
        report.add("packing", size / 1e9 / packing, "GB/s")
        report.add("packing, share of cat", copy / packing, "x", SHARE_BAR, "higher")
        report.add("whole compilation, share of cat", copy / made["seconds"], "x")
        details = {"bytes": size, "cat_seconds": copies, "stages": made["stages"], "seconds": made["seconds"],
                   "tree_peak_bytes": finished.tree_peak_bytes}
    finally:
        shutil.rmtree(folder)
    report.finish(HOW, details)


if __name__ == "__main__":
    main()
