"""Memory of compiling a checkpoint larger than what compiling should need: peak, less torch, less one layer."""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import fresh_process
from checkpoints import DENSE
from compile_once import in_fresh_process, random_model
from report import Report, default_out

from glmc.checkpoint.folder import Checkpoint

BAR = 1.0
IMPORTS = "import json, torch, transformers, fresh_process; print(json.dumps(fresh_process.own_memory()))"
HOW = ("a random bfloat16 glm4, one safetensors file a layer, compiled in a fresh process, nothing cached. `main` is "
       "the compiling process's VmHWM; `tree` the most PSS (pages shared by two processes counted once) of it and "
       "all its children together, the region compilers and g++ among them, looked at every 20 ms. Taken off: VmRSS "
       "of a fresh process after `import torch, transformers`, and the weights of the largest decoder layer. GB are "
       "1e9 bytes")


def largest_layer(checkpoint: Path) -> int:
    """Bytes of the tensors of the largest decoder layer."""
    layers: Counter[str] = Counter()
    for name, tensor in Checkpoint.open(checkpoint).tensors.items():
        if found := re.search(r"\.layers\.(\d+)\.", name):
            layers[found[1]] += tensor.nbytes
    return max(layers.values())


def torch_memory() -> int:
    """Bytes that a fresh process holds after `import torch, transformers`."""
    here = str(Path(__file__).parent)
    return fresh_process.run(fresh_process.python("-c", IMPORTS), {"PYTHONPATH": here}).json()["now"]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--hidden", type=int, default=2048, help="a multiple of 128")
    options.add_argument("--layers", type=int, default=18)
    options.add_argument("--vocabulary", type=int, default=32000)
    options.add_argument("--targets", default="fx,cpu")
    options.add_argument("--keep", type=Path, help="a new folder that keeps the checkpoint and the artefacts")
    options.add_argument("--out", type=Path, default=default_out("pack_memory"))
    given = options.parse_args()
    config: dict[str, Any] = {
        **DENSE, "hidden_size": given.hidden, "num_hidden_layers": given.layers, "vocab_size": given.vocabulary,
        "num_attention_heads": given.hidden // 64, "num_key_value_heads": 2, "head_dim": 64,
        "intermediate_size": given.hidden * 27 // 8}
    report = Report("pack_memory", given.out)
    folder = given.keep or Path(tempfile.mkdtemp(prefix="glmc-bench-"))
    try:
        checkpoint = random_model(folder, config)
        weights = sum(t.nbytes for t in Checkpoint.open(checkpoint).tensors.values())
        layer, torch_bytes = largest_layer(checkpoint), torch_memory()
        report.add("checkpoint", weights / 1e9, "GB")
        report.add("`import torch, transformers`", torch_bytes / 1e9, "GB")
        report.add("largest decoder layer", layer / 1e9, "GB")
        details: dict[str, Any] = {"config": config, "weights_bytes": weights, "torch_bytes": torch_bytes,
                                   "largest_layer_bytes": layer}
        for target in given.targets.split(","):
            made, finished = in_fresh_process(checkpoint, folder / f"{target}.glmc", target, cached=False, watch=True)
            peaks = {"main": made["memory"]["peak"], "tree": finished.tree_peak_bytes or 0}
            for whose, peak in peaks.items():
                report.add(f"{target}: peak of {whose}", peak / 1e9, "GB")
                report.add(f"{target}: peak of {whose} less torch and one layer", (peak - torch_bytes - layer) / 1e9,
                           "GB", BAR)
            details[target] = {"peak_bytes": peaks, "looks": finished.looks, "seconds": made["seconds"],
                               "stages": made["stages"]}
    finally:
        if given.keep is None:
            shutil.rmtree(folder)
    report.finish(HOW, details)


if __name__ == "__main__":
    main()
