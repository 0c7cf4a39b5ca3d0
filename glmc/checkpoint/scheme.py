"""Strict reading of `quantization_config`: what the publisher says is quantised, in which forms, and what is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from glmc.checkpoint.exclude import Excludes
from glmc.checkpoint.formats import Block
from glmc.errors import ConfigError

METHODS = ("quark", "fp8", "compressed-tensors", "modelopt")
MAX_ENTRIES = 200_000
_FIELD = "quantization_config"


@dataclass(frozen=True)
class Scheme:
    """What is said of a checkpoint. listed: the field that lists what is left out. block: outputs and inputs that share a
    scale, None where each output or the whole has one. forms: those that weights may have."""

    method: str
    listed: str
    excludes: Excludes
    forms: tuple[str, ...]
    block: Block | None = None


def scheme_of(config: dict[str, Any]) -> Scheme | None:
    """The scheme of config.json; None where it has none. Raises ConfigError naming the field that cannot be read."""
    said = config.get(_FIELD)
    if said is None:
        return None
    if not isinstance(said, dict):
        raise _refused("", "an object", said)
    method = said.get("quant_method")
    if method not in METHODS:
        raise ConfigError("no such quantisation is read", file="config.json", field=f"{_FIELD}.quant_method", found=method,
                          expected=", ".join(METHODS), hint="use the bfloat16 checkpoint")
    readers: dict[str, Callable[[dict[str, Any]], Scheme]] = {
        "quark": _quark, "fp8": _fp8, "compressed-tensors": _compressed, "modelopt": _modelopt}
    return readers[method](said)


def _refused(name: str, expected: Any, found: Any) -> ConfigError:
    return ConfigError("the field is missing or says something that is not read", file="config.json", expected=expected,
                       field=f"{_FIELD}.{name}" if name else _FIELD, found=found)


def _one_of(box: Any, name: str, *allowed: Any, at: str = "", need: bool = False) -> Any:
    """Field `name` of `box`, one of `allowed`; the first stands for a field that is not there, unless there is need."""
    if not isinstance(box, dict):
        raise _refused(at, "an object", box)
    found = box.get(name, None if need else allowed[0])
    if not any(found == one and type(found) is type(one) for one in allowed):
        raise _refused(f"{at}.{name}" if at else name, " or ".join(map(str, allowed)), found)
    return found


def _entries(said: dict[str, Any], *names: str) -> tuple[str, tuple[str, ...]]:
    """(the first of the fields that is there, its list); an absent list leaves nothing out."""
    for name in names:
        if (found := said.get(name)) is not None:
            if not isinstance(found, list) or len(found) > MAX_ENTRIES or not all(isinstance(e, str) and e for e in found):
                raise _refused(name, f"a list of at most {MAX_ENTRIES} names", found)
            return name, tuple(dict.fromkeys(found))
    return names[0], ()


def _block(found: Any, name: str) -> Block | None:
    if found is None:
        return None
    if not isinstance(found, list) or len(found) != 2 or not all(type(n) is int and 0 < n <= 1 << 16 for n in found):
        raise _refused(name, "two whole numbers, rows and columns", found)
    return found[0], found[1]


def _quark(said: dict[str, Any]) -> Scheme:
    listed, entries = _entries(said, "exclude")
    _one_of(said.get("export") or {}, "weight_format", "real_quantized", at="export")
    _one_of(said.get("export") or {}, "pack_method", "reorder", "order", at="export")
    configs = [("global_quant_config", said.get("global_quant_config"))]
    for name in ("layer_quant_config", "layer_type_quant_config"):
        inner = said.get(name) or {}
        if not isinstance(inner, dict):
            raise _refused(name, "an object", inner)
        configs += [(f"{name}.{key}", value) for key, value in inner.items()]
    forms = [_quark_form(name, value) for name, value in configs if value is not None]
    if not forms:
        raise _refused("global_quant_config", "an object", None)
    return Scheme("quark", listed, Excludes(entries), tuple(dict.fromkeys(forms)))


def _quark_form(name: str, found: Any) -> str:
    for unread in ("output_tensors", "bias"):
        _one_of(found, unread, None, at=name)
    weight, at = found.get("weight"), f"{name}.weight"
    if _one_of(weight, "dtype", "fp4", "fp8_e4m3", at=at, need=True) == "fp4":
        for field, *allowed in (("qscheme", "per_group"), ("group_size", 32), ("scale_format", "e8m0"),
                                ("is_dynamic", False, None), ("ch_axis", -1, 1)):
            _one_of(weight, field, *allowed, at=at)
        return "MX4"
    _one_of(weight, "qscheme", "per_tensor", "per_channel", at=at, need=True)
    _one_of(weight, "is_dynamic", False, None, at=at)
    return "F8"


def _fp8(said: dict[str, Any]) -> Scheme:
    _one_of(said, "fmt", "e4m3")
    _one_of(said, "activation_scheme", "dynamic", "static")
    listed, entries = _entries(said, "modules_to_not_convert", "ignored_layers")
    return Scheme("fp8", listed, Excludes(entries, below=True), ("F8",),
                  _block(said.get("weight_block_size"), "weight_block_size"))


def _compressed(said: dict[str, Any]) -> Scheme:
    _one_of(said, "format", "float-quantized", need=True)
    _one_of(said, "quantization_status", "compressed")
    groups = said.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise _refused("config_groups", "an object of groups", groups)
    blocks = set()
    for name, group in groups.items():
        at = f"config_groups.{name}"
        _one_of(group, "targets", ["Linear"], at=at)
        weights, at = group.get("weights"), f"{at}.weights"
        for field, *allowed in (("type", "float"), ("symmetric", True), ("dynamic", False)):
            _one_of(weights, field, *allowed, at=at)
        _one_of(weights, "num_bits", 8, at=at, need=True)
        blocked = _one_of(weights, "strategy", "channel", "tensor", "block", at=at, need=True) == "block"
        blocks.add(_block(weights.get("block_structure"), f"{at}.block_structure") if blocked else None)
    if len(blocks) != 1:
        raise _refused("config_groups", "one size of blocks for all groups", sorted(map(str, blocks)))
    listed, entries = _entries(said, "ignore")
    return Scheme("compressed-tensors", listed, Excludes(entries), ("F8",), blocks.pop())


def _modelopt(said: dict[str, Any]) -> Scheme:
    form = {"NVFP4": "NV4", "FP8": "F8"}[_one_of(said, "quant_algo", "NVFP4", "FP8", need=True)]
    groups = said.get("config_groups") or {}
    if not isinstance(groups, dict):
        raise _refused("config_groups", "an object of groups", groups)
    for name, group in groups.items():
        at = f"config_groups.{name}"
        _one_of(group, "targets", ["Linear"], at=at)
        for field, *allowed in (("type", "float"), ("dynamic", False), ("num_bits", 4 if form == "NV4" else 8)):
            _one_of(group.get("weights"), field, *allowed, at=f"{at}.weights")
        if form == "NV4":
            _one_of(group["weights"], "group_size", 16, at=f"{at}.weights")
    listed, entries = _entries(said, "ignore", "exclude_modules")
    return Scheme("modelopt", listed, Excludes(entries), (form,))
