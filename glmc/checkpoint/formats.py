"""Quantised weights as publishers store them: which form a weight has is told by its scale tensors, never by a name.

    form   weight                scales                                                value
    MX4    U8 [out, in / 2]      weight_scale U8 or F8_E8M0 [out, in / 32]             e2m1 * 2^(scale - 127)
    F8     F8_E4M3 [out, in]     weight_scale_inv or weight_scale, F32 or BF16         e4m3 * scale
    NV4    U8 [out, in / 2]      weight_scale F8_E4M3 [out, in / 16], weight_scale_2   e2m1 * scale * scale_2

A byte of two e2m1 codes holds the even input in its low half. Scales of F8 stand for a block [ceil(out / b0), ceil(in / b1)],
an output ([out] or [out, 1]) or the whole ([1] or []). Headers only here; glmc/checkpoint/decode.py has the values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from glmc.checkpoint.safetensors_header import TensorInfo
from glmc.errors import ConfigError, WeightMismatch, WeightMissing

if TYPE_CHECKING:
    import torch

    from glmc.checkpoint.folder import Checkpoint

Block = tuple[int, int]
PLAIN = ("BF16", "F16", "F32")
GROUPS = {"MX4": 32, "NV4": 16}
"""Neighbouring inputs of an output that share a scale."""
SCALES = ("_scale", "_scale_inv", "_scale_2")
"""What is added to a weight's name for its scales."""
UNUSED = r".*\.(?:input|output|q|k|v)_scale"
"""Scales of activations and of caches, which the compiled model keeps in its own dtype."""


@dataclass(frozen=True)
class Source:
    """One quantised weight. scales: tensors, the finest first. shape: [out, in] as it was; block: outputs and inputs that share
    a scale, (1, in) where each output has one and (out, in) where the whole has."""

    form: str
    weight: str
    scales: tuple[str, ...]
    shape: tuple[int, int]
    block: Block

    @property
    def grid(self) -> tuple[int, int]:
        """The finest scales' shape when written in two dims."""
        return -(-self.shape[0] // self.block[0]), -(-self.shape[1] // self.block[1])

    def codes_and_scales(self, checkpoint: Checkpoint) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """The tensors as they stand in the file: codes [out, in / 2] or [out, in], and each of `scales`, found sound.

        Raises WeightNotFinite naming a scale that is not a finite number, and what reading the checkpoint raises.
        """
        from glmc.checkpoint.decode import sound_scales

        return checkpoint.read(self.weight), sound_scales(self, checkpoint)


def source_of(name: str, tensors: Mapping[str, TensorInfo], block: Block | None = None) -> Source | None:
    """How tensor `name` is quantised; None where it is not, or is not there.

    block: what the configuration says of blocks. Raises WeightMissing for a weight without its scale, WeightMismatch for
    scales of another shape or dtype and for a form that is none of the three, ConfigError for blocks of an unsaid size.
    """
    info = tensors.get(name)
    if info is None:
        return None
    there = [name + end for end in SCALES if name + end in tensors]
    if info.dtype in PLAIN:
        if there:
            raise WeightMismatch("a scale stands beside a weight that is not quantised", file=tensors[there[0]].file,
                                 field=there[0], expected=f"codes in {name}", found=info.dtype)
        return None
    if not there and info.dtype not in ("U8", "F8_E4M3"):
        return None
    if not there or there == [name + "_scale_2"]:
        raise WeightMissing("a quantised weight has no scale", file=info.file, field=name,
                            expected=f"{name}_scale or {name}_scale_inv", found=f"{info.dtype} alone")
    if len(info.shape) != 2 or 0 in info.shape:
        raise _odd(info, "a quantised weight is no matrix", "[out, in] without a zero", list(info.shape))
    scale = tensors[there[0]]
    if info.dtype == "U8" and there == [name + "_scale"] and scale.dtype in ("U8", "F8_E8M0"):
        return _grouped("MX4", info, scale, (there[0],))
    if info.dtype == "U8" and there[0] == name + "_scale" and scale.dtype == "F8_E4M3":
        return _two_levels(info, scale, tensors)
    if info.dtype == "F8_E4M3" and len(there) == 1 and scale.dtype in PLAIN:
        return _bytes(info, scale, block)
    raise _odd(info, "no form has a weight and scales of these dtypes", "MX4, F8 or NV4",
               ", ".join(f"{tensors[n].dtype} in {n.rsplit('.', 1)[-1]}" for n in (name, *there)))


def _odd(info: TensorInfo, what: str, expected: object, found: object) -> WeightMismatch:
    return WeightMismatch(what, file=info.file, field=info.name, expected=expected, found=found)


def _grouped(form: str, info: TensorInfo, scale: TensorInfo, names: tuple[str, ...]) -> Source:
    group = GROUPS[form]
    out, width = info.shape[0], 2 * info.shape[1]
    if width % group:
        raise _odd(info, f"the packed width does not hold whole groups of {group}", f"a multiple of {group // 2} bytes",
                   f"{info.shape[1]} bytes")
    if scale.shape != (out, width // group):
        raise _odd(scale, "a scale has another shape than its weight wants", [out, width // group], list(scale.shape))
    return Source(form, info.name, names, (out, width), (1, group))


def _two_levels(info: TensorInfo, scale: TensorInfo, tensors: Mapping[str, TensorInfo]) -> Source:
    whole = tensors.get(info.name + "_scale_2")
    if whole is None:
        raise WeightMissing("a quantised weight has no scale of the whole", file=info.file, field=info.name + "_scale_2")
    if math.prod(whole.shape) != 1 or whole.dtype != "F32":
        raise _odd(whole, "the scale of the whole is not one number", "F32 []", f"{whole.dtype} {list(whole.shape)}")
    return _grouped("NV4", info, scale, (scale.name, whole.name))


def _bytes(info: TensorInfo, scale: TensorInfo, block: Block | None) -> Source:
    out, width = info.shape
    whole = scale.name.endswith("_scale_inv") and block is not None
    fits: list[tuple[tuple[int, ...], Block]] = []
    if block is not None:
        fits.append(((-(-out // block[0]), -(-width // block[1])), block))
    if not whole:
        fits += [((out, 1), (1, width)), ((out,), (1, width)), ((1,), (out, width)), ((), (out, width)), ((1, 1), (out, width))]
    for shape, found in fits:
        if scale.shape == shape:
            return Source("F8", info.name, (scale.name,), (out, width), found)
    if block is None and len(scale.shape) == 2 and scale.name.endswith("_scale_inv"):
        raise ConfigError("the configuration does not say the size of the blocks that share a scale", file="config.json",
                          field="quantization_config.weight_block_size", expected=f"[rows, columns] for {scale.name}",
                          found=f"scales {list(scale.shape)} for {[out, width]}")
    expected = f"{list(fits[0][0])} for blocks of {list(block)}" if block is not None else f"[{out}, 1], [{out}], [1] or []"
    raise _odd(scale, "a scale has another shape than its weight wants", expected, list(scale.shape))
