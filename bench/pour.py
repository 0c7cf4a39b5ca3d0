"""Large checkpoints of random numbers, poured tensor by tensor, with routed experts in any form that publishers use.

    python bench/pour.py CONFIG.json FOLDER [--kind mxfp4] [--shards 4]

What is computed with them means nothing; sizes, dtypes and names are those of a real checkpoint.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KINDS = ("bfloat16", "mxfp4", "fp8", "nvfp4")
_BANK = 1 << 25
_EXPERT = re.compile(r"\.mlp\.experts\.\d+\.")
_WEIGHT = {"num_bits": 4, "type": "float", "group_size": 16, "dynamic": False}
_MX = {"dtype": "fp4", "qscheme": "per_group", "ch_axis": -1, "group_size": 32, "scale_format": "e8m0"}
SCHEMES: dict[str, tuple[str, dict[str, Any]]] = {
    "mxfp4": ("exclude", {"quant_method": "quark", "export": {"kv_cache_group": [], "pack_method": "reorder"},
                          "global_quant_config": {"weight": {**_MX, "is_dynamic": False}, "bias": None, "output_tensors": None,
                                                  "input_tensors": {**_MX, "is_dynamic": True}},
                          "layer_quant_config": {}, "layer_type_quant_config": {}}),
    "fp8": ("modules_to_not_convert", {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                                       "weight_block_size": [128, 128]}),
    "nvfp4": ("ignore", {"quant_method": "modelopt", "quant_algo": "NVFP4", "config_groups": {
        "group_0": {"weights": _WEIGHT, "input_activations": _WEIGHT, "targets": ["Linear"]}}}),
}
"""Kind -> the name of its exclude list in quantization_config, and the rest of that."""


def tensors(config: dict[str, Any]) -> dict[str, list[int]]:
    """The checkpoint's names and shapes, as the family's recipes read them."""
    import torch

    from glmc import published

    family = importlib.import_module(f"glmc.families.{config['model_type']}")
    dims, found = family.read(config), {}
    for name, tensor in published.build(config, torch.bfloat16).state_dict().items():
        leaves = family.recipe(name, dims).names()
        rows = tensor.shape[1] // 2 if name.endswith("experts.gate_up_proj") else tensor.shape[1] if len(leaves) > 1 else 0
        for leaf in leaves:
            found[leaf] = [rows, tensor.shape[2]] if len(leaves) > 1 else list(tensor.shape)
    return found


def stored(name: str, shape: list[int], kind: str) -> list[tuple[str, str, list[int], str]]:
    """(name, dtype, shape, bank) of what a weight becomes in a file."""
    if name.endswith("correction_bias"):
        return [(name, "F32", shape, "floats")]
    if kind == "bfloat16" or not _EXPERT.search(name):
        return [(name, "BF16", shape, "halves")]
    out, width = shape
    if kind == "mxfp4":
        return [(name, "U8", [out, width // 2], "codes"), (f"{name}_scale", "U8", [out, width // 32], "powers")]
    if kind == "fp8":
        return [(name, "F8_E4M3", shape, "bytes"), (f"{name}_scale_inv", "F32", [-(-out // 128), -(-width // 128)], "small")]
    return [(name, "U8", [out, width // 2], "codes"), (f"{name}_scale", "F8_E4M3", [out, width // 16], "ones"),
            (f"{name}_scale_2", "F32", [], "small")]


def banks() -> dict[str, memoryview]:
    """Random bytes of each sort, to be read from other places each time."""
    import torch

    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (_BANK,), generator=draw, dtype=torch.uint8)
    made = {"halves": (torch.randn(_BANK, generator=draw) * 0.02).bfloat16(), "codes": codes,
            "bytes": torch.where(codes & 127 > 120, 56, codes).to(torch.uint8),
            "powers": 120 + codes % 3, "ones": 56 + codes % 8, "floats": torch.randn(1 << 20, generator=draw),
            "small": torch.rand(1 << 20, generator=draw) * 1e-4 + 1e-5}
    return {name: memoryview(tensor.view(torch.uint8).numpy()) for name, tensor in made.items()}


def pieces(bank: memoryview, size: int, at: int) -> Iterator[memoryview]:
    """`size` bytes of a bank from a place that `at` decides, whole numbers of 4 bytes apart."""
    while size:
        at = (at * 1103515245 + 12345) % (len(bank) // 2) // 4 * 4
        piece = bank[at:at + size]
        yield piece
        size -= len(piece)


def pour(folder: Path, config: dict[str, Any], kind: str = "bfloat16", shards: int = 4) -> int:
    """Write the checkpoint; returns its bytes."""
    shapes, bank = tensors(config), banks()
    files = [one for name, shape in shapes.items() for one in stored(name, shape, kind)]
    width = {"F32": 4, "BF16": 2, "U8": 1, "F8_E4M3": 1}
    sizes = {name: width[dtype] * _product(shape) for name, dtype, shape, _ in files}
    if kind != "bfloat16":
        listed, said = SCHEMES[kind]
        spared = sorted({n.removesuffix(".weight") for n, s in shapes.items()
                         if len(s) == 2 and n.endswith(".weight") and not _EXPERT.search(n)})
        config = {**config, "quantization_config": {**said, listed: spared}}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    index: dict[str, str] = {}
    each, number = sum(sizes.values()) / shards, 0
    while files:
        number += 1
        mine, filled = [], 0
        while files and (number == shards or filled < each):
            mine.append(files.pop(0))
            filled += sizes[mine[-1][0]]
        begin, entries = 0, {}
        for name, dtype, shape, _ in mine:
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + sizes[name]]}
            begin += sizes[name]
        file = f"model-{number:05d}-of-{shards:05d}.safetensors"
        header = json.dumps(entries).encode()
        with open(folder / file, "wb") as out:
            out.write(len(header).to_bytes(8, "little") + header)
            for turn, (name, _, _, sort) in enumerate(mine):
                for piece in pieces(bank[sort], sizes[name], turn + 7919 * number):
                    out.write(piece)
        index |= dict.fromkeys(entries, file)
    total = sum(sizes.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": index}))
    return total


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("config", type=Path)
    options.add_argument("folder", type=Path)
    options.add_argument("--kind", choices=KINDS, default="bfloat16")
    options.add_argument("--shards", type=int, default=4)
    given = options.parse_args()
    print(json.dumps({"bytes": pour(given.folder, json.loads(given.config.read_text()), given.kind, given.shards)}))


if __name__ == "__main__":
    main()
