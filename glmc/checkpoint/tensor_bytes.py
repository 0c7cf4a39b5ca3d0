"""The dtype names of safetensors: their width, their torch dtype, and the raw bytes of a tensor.

torch is imported only by the functions that need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glmc.errors import WeightMismatch

if TYPE_CHECKING:
    import torch

# Bits of one element. F4 and F6 are packed, so a tensor of them must fill whole bytes.
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}

_TORCH = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu", "I16": "int16", "U16": "uint16", "F16": "float16", "BF16": "bfloat16",
    "I32": "int32", "U32": "uint32", "F32": "float32", "I64": "int64", "U64": "uint64", "F64": "float64",
    "C64": "complex64",
}


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a safetensors dtype name. Raises WeightMismatch for F4, F6 and unknown names."""
    import torch

    if name not in _TORCH:
        raise WeightMismatch("torch has no whole-byte dtype for this", expected=sorted(_TORCH), found=name)
    return getattr(torch, _TORCH[name])


def dtype_name(dtype: torch.dtype) -> str:
    """The safetensors name of a torch dtype, "BF16" for torch.bfloat16. Raises WeightMismatch when it has none."""
    plain = str(dtype).removeprefix("torch.")
    for name, text in _TORCH.items():
        if text == plain:
            return name
    raise WeightMismatch("safetensors has no name for this dtype", expected=sorted(_TORCH.values()), found=plain)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, shared and not copied, writable: a flat memoryview of unsigned bytes."""
    import torch

    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data
