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


def config_of(gigabytes: float) -> dict[str, Any]:
    """The configuration with as many layers as make about so many bytes."""
    layer = CONFIG["n_routed_experts"] * 3 * CONFIG["hidden_size"] * CONFIG["moe_intermediate_size"] * 2
    return {**CONFIG, "num_hidden_layers": 1 + max(1, round((gigabytes * 1e9 - 5e8) / layer))}


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
    options.add_argument("--kind", default="bfloat16", help="the form of the routed experts, see pour.py")
    options.add_argument("--folder", type=Path, help="where the checkpoint and the artefact go; a temporary folder otherwise")
    options.add_argument("--out", type=Path, default=default_out("stream"))
    given = options.parse_args()
    report = Report("stream", given.out)
    folder = Path(tempfile.mkdtemp(prefix="glmc-bench-", dir=given.folder))
    try:
        checkpoint = folder / "checkpoint"
        (folder / "asked.json").write_text(json.dumps(config_of(given.gigabytes)))
        script = Path(__file__).with_name("pour.py")
        poured = fresh_process.python(script, folder / "asked.json", checkpoint, "--kind", given.kind,
                                      "--shards", SHARDS)
        size = fresh_process.run(poured).json()["bytes"]
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
