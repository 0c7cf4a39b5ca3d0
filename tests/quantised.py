"""Writes tiny quantised checkpoints, in numpy and from each format's definition alone, so that a wrong reader is seen.

`write` takes a plain checkpoint folder and gives one in which chosen modules are quantised, and the folder of its decoded
weights in float32: transformers on the second must say what the compiled first says.
"""

from __future__ import annotations

import copy
import functools
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import models
import numpy as np
import torch
from safetensors.torch import load_file, save_file

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
SIZES = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_attention_heads": 4,
         "num_hidden_layers": 2, "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 32, "v_head_dim": 16,
         "indexer_types": ["full", "shared"]}
"""Changes to a tiny configuration after which groups of 32 inputs fit; each family takes those that it has."""
TOWER = {"hidden_size": 64, "num_heads": 4, "intermediate_size": 96, "out_hidden_size": 64}
"""The same of a vision tower."""
Stored = tuple[str, tuple[int, ...], bytes]
"""A tensor in a file: dtype as safetensors names it, shape, bytes."""


def e4m3() -> np.ndarray:
    """float32 [256]: sign, four bits of exponent with offset 7, three of mantissa; no infinity, two NaN."""
    code = np.arange(256)
    sign, power, rest = np.where(code >> 7, -1.0, 1.0), (code >> 3) & 15, (code & 7) / 8
    found = sign * np.where(power == 0, rest * 2.0**-6, (1 + rest) * 2.0**(power - 7.0))
    found[(code & 127) == 127] = np.nan
    return found.astype(np.float32)


def nearest(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Codes of the nearest values of an ascending table that begins with zero; a tie takes the even code, the sign a bit."""
    size = np.abs(values).astype(np.float64)
    above = np.clip(np.searchsorted(table, size), 1, len(table) - 1)
    low, high = size - table[above - 1], table[above] - size
    take_high = (high < low) | ((high == low) & (above % 2 == 0))
    return (np.where(take_high, above, above - 1) + np.signbit(values) * len(table)).astype(np.uint8)


def to_e4m3(values: np.ndarray) -> np.ndarray:
    """uint8 codes of values within +-448."""
    found = nearest(values, e4m3()[:127])
    return np.where(found >= 127, found - 127 + 128, found).astype(np.uint8)


def halves(codes: np.ndarray) -> np.ndarray:
    """uint8 [out, in / 2] of codes [out, in]: the even input is the low half of a byte."""
    return codes[:, 0::2] | codes[:, 1::2] << 4


def even_scale(amax: np.ndarray) -> np.ndarray:
    """Quark's "even" byte of the scale of a group: a quarter of the last whole power is added before its exponent is taken."""
    bits = (np.ascontiguousarray(amax, np.float32).view(np.uint32) + (1 << 21)) & 0x7F800000
    with np.errstate(divide="ignore"):  # what leaves float32 becomes infinite, and then the largest scale
        return (np.clip(np.log2(bits.view(np.float32)) - 2, -126, 127) + 127).astype(np.uint8)


def mx4(weight: np.ndarray, name: str, **_: Any) -> tuple[dict[str, Stored], np.ndarray]:
    groups = weight.reshape(len(weight), -1, 32)
    byte = even_scale(np.abs(groups).max(-1))
    power = 2.0**(byte.astype(np.float64) - 127)[..., None]
    codes = nearest(groups / power, E2M1)
    decoded = (np.where(codes & 8, -1.0, 1.0) * E2M1[codes & 7] * power).reshape(weight.shape)
    return {name: _u8(halves(codes.reshape(weight.shape))), f"{name}_scale": _u8(byte)}, decoded.astype(np.float32)


def nv4(weight: np.ndarray, name: str, **_: Any) -> tuple[dict[str, Stored], np.ndarray]:
    whole = np.float32(np.abs(weight).max() / (6 * 448))
    groups = weight.reshape(len(weight), -1, 16)
    scale = to_e4m3(np.abs(groups).max(-1) / 6 / whole)
    factor = e4m3()[scale].astype(np.float64)[..., None]
    codes = nearest(groups / np.maximum(factor * whole, 1e-30), E2M1)
    decoded = (np.where(codes & 8, -1.0, 1.0) * E2M1[codes & 7] * factor * np.float64(whole)).reshape(weight.shape)
    module = name.removesuffix(".weight")
    return {name: _u8(halves(codes.reshape(weight.shape))), f"{name}_scale": ("F8_E4M3", scale.shape, scale.tobytes()),
            f"{name}_scale_2": _f32(whole), f"{module}.input_scale": _f32(np.float32(0.25))}, decoded.astype(np.float32)


def f8(weight: np.ndarray, name: str, block: tuple[int, int] | None = None, end: str = "_scale", **_: Any,
       ) -> tuple[dict[str, Stored], np.ndarray]:
    """block None: a scale for each output, written [out, 1]; (0, 0): one of the whole."""
    out, width = weight.shape
    rows, columns = (1, width) if block is None else (out, width) if block == (0, 0) else block
    grid = np.array([[np.abs(weight[r:r + rows, c:c + columns]).max() / 448 for c in range(0, width, columns)]
                     for r in range(0, out, rows)], np.float32)
    spread = grid.repeat(rows, 0)[:out].repeat(columns, 1)[:, :width]
    codes = to_e4m3(np.clip(weight / spread, -448, 448))
    decoded = e4m3()[codes] * spread
    return {name: ("F8_E4M3", codes.shape, codes.tobytes()),
            name + end: _f32(grid.reshape(()) if block == (0, 0) else grid)}, decoded


def _u8(values: np.ndarray) -> Stored:
    return "U8", values.shape, np.ascontiguousarray(values).tobytes()


def _f32(values: Any) -> Stored:
    return "F32", np.shape(values), np.asarray(values, np.float32).tobytes()


@dataclass(frozen=True)
class Kind:
    """A published way of quantising: how a weight is written, and config.json's block without its list `listed`."""

    write: Any
    listed: str
    said: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)


_FP4 = {"dtype": "fp4", "is_dynamic": False, "qscheme": "per_group", "ch_axis": -1, "group_size": 32, "scale_format": "e8m0",
        "scale_calculation_mode": "even"}
_CT = {"quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed"}


def _group(strategy: str) -> dict[str, Any]:
    weights = {"type": "float", "num_bits": 8, "strategy": strategy, "symmetric": True, "dynamic": False,
               "block_structure": None}
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "output_activations": None}}}


KINDS = {
    "quark": Kind(mx4, "exclude", {
        "quant_method": "quark", "layer_quant_config": {}, "layer_type_quant_config": {}, "quant_mode": "eager_mode",
        "global_quant_config": {"weight": _FP4, "input_tensors": {**_FP4, "is_dynamic": True}, "output_tensors": None,
                                "bias": None},
        "export": {"kv_cache_group": [], "pack_method": "reorder", "weight_format": "real_quantized"}}),
    "fp8": Kind(f8, "modules_to_not_convert", {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [32, 48]},
        {"block": (32, 48), "end": "_scale_inv"}),
    "channel": Kind(f8, "ignore", {**_CT, **_group("channel")}),
    "tensor": Kind(f8, "ignore", {**_CT, **_group("tensor")}, {"block": (0, 0)}),
    "modelopt": Kind(nv4, "ignore", {
        "quant_method": "modelopt", "quant_algo": "NVFP4",
        "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"},
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"dynamic": False, "num_bits": 4, "type": "float",
                                                                         "group_size": 16}}}}),
}


def save(path: Path, tensors: dict[str, Stored]) -> None:
    """A safetensors file, byte by byte."""
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data for *_, data in tensors.values()))


def plain(tensor: torch.Tensor, wide: bool) -> tuple[Stored, torch.Tensor]:
    """A tensor in float32, or rounded to bfloat16; and what can be read from that."""
    kept = tensor.float() if wide else tensor.bfloat16()
    return ("F32" if wide else "BF16", tuple(kept.shape), kept.contiguous().view(torch.uint8).numpy().tobytes()), kept.float()


def encoded(weights: dict[str, torch.Tensor], modules: set[str], kind: Kind,
            ) -> tuple[dict[str, Stored], dict[str, torch.Tensor]]:
    """(what the file holds, the decoded weights). Norms stay float32, other plain tensors are bfloat16."""
    stored: dict[str, Stored] = {}
    decoded: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        if name.removesuffix(".weight") in modules:
            more, values = kind.write(tensor.float().numpy(), name, **kind.options)
            stored |= more
            decoded[name] = torch.from_numpy(values.copy())
        else:
            stored[name], decoded[name] = plain(tensor, "norm" in name)
    return stored, decoded


def put(folder: Path, stored: dict[str, Stored], config: dict[str, Any], shards: int = 1) -> Path:
    """Write a checkpoint folder, in several shards if asked."""
    folder.mkdir(parents=True, exist_ok=True)
    models.describe(config, folder)
    if shards == 1:
        save(folder / "model.safetensors", stored)
        return folder
    names = {f"model-{i + 1:05}-of-{shards:05}.safetensors": list(stored)[i::shards] for i in range(shards)}
    for shard, inside in names.items():
        save(folder / shard, {name: stored[name] for name in inside})
    total = sum(len(data) for *_, data in stored.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps(
        {"metadata": {"total_size": total}, "weight_map": {n: shard for shard, inside in names.items() for n in inside}}))
    return folder


@dataclass(frozen=True)
class Written:
    """config: of the quantised checkpoint `folder`, whose file holds `stored`; `reference` holds its decoded weights."""

    config: dict[str, Any]
    folder: Path
    stored: dict[str, Stored]
    decoded: dict[str, torch.Tensor]
    reference: torch.nn.Module


def linears(weights: dict[str, torch.Tensor]) -> set[str]:
    """The modules of a tiny GLM checkpoint that publishers quantise: every projection but the head and the draft layer's.

    Those of a vision tower are among them, and published ones leave them out.
    """
    ends = ("proj.weight", "_with_mqa.weight", "indexer.wq_b.weight", "indexer.wk.weight", ".attn.qkv.weight")
    return {name.removesuffix(".weight") for name in weights
            if name.endswith(ends) and "eh_proj" not in name and "patch_embed" not in name}


def sized(family: str, dtype: str) -> dict[str, Any]:
    """The tiny configuration of a family in sizes that formats of groups can have."""
    config = copy.deepcopy(models.tiny_config(family, torch_dtype=dtype))
    text = config.get("text_config", config)
    text.update({k: v for k, v in SIZES.items() if k in text})
    if "vision_config" in config:
        config["vision_config"].update(TOWER)
        text["rope_parameters"]["partial_rotary_factor"] = 0.75  # 6 pairs of lanes of 16, as the axes share them out
    return config


@functools.cache
def written(kind: str, spared: tuple[str, ...] = (), listed: tuple[str, ...] = (), shards: int = 1, draft: bool = False,
            family: str = "glm4_moe", dtype: str = "float32") -> Written:
    """A tiny checkpoint of a family, quantised but for the head and the modules whose names hold a text of `spared`.

    listed: further entries of the list. draft: a layer past the last one, which nothing reads, is there too. dtype: what
    config.json says of the model; the tensors that are not quantised are float32.
    """
    config = sized(family, dtype)
    base = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=models.scratch()))
    weights = load_file(models.save(models.randomised(config), config, base / "plain") / "model.safetensors")
    modules = {m for m in linears(weights) if not any(text in m for text in spared)}
    left = sorted(linears(weights) - modules)
    stored, decoded = encoded(weights, modules, KINDS[kind])
    if draft:
        last = config["num_hidden_layers"]
        before = f"layers.{last - 1}."
        extra = {n.replace(before, f"layers.{last}."): t for n, t in weights.items() if before in n}
        extra[f"model.layers.{last}.eh_proj.weight"] = torch.randn(64, 128)
        stored |= encoded(extra, linears(extra), KINDS[kind])[0]
    entries = ["lm_head", "model.embed_tokens", *left, *listed]
    config = {**config, "quantization_config": {**KINDS[kind].said, KINDS[kind].listed: entries}}
    return Written(config, put(base / "quantised", stored, config, shards), stored, decoded, reference(config, decoded, base))


def reference(config: dict[str, Any], decoded: dict[str, torch.Tensor], base: Path) -> torch.nn.Module:
    """transformers' model of the decoded weights, read by its own loader."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    plain_config = {k: v for k, v in config.items() if k != "quantization_config"}
    put(base / "decoded", {}, plain_config)
    save_file({n: t.contiguous() for n, t in decoded.items()}, base / "decoded" / "model.safetensors", {"format": "pt"})
    experts = {"experts_implementation": "eager"} if "n_routed_experts" in config.get("text_config", config) else {}
    kind = AutoModelForImageTextToText if "text_config" in config else AutoModelForCausalLM
    return kind.from_pretrained(base / "decoded", dtype=torch.float32, **experts).eval()
