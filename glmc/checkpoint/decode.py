"""The exact values of quantised weights, in float32 and some rows at a time.

A product of a code and a power of two is exact. e4m3 * scale is rounded once; so is e2m1 * scale * scale_2, since the first
product has at most six bits.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from glmc.checkpoint.formats import Source
from glmc.checkpoint.tensor_bytes import torch_dtype
from glmc.errors import WeightNotFinite
from glmc.native.panels import E2M1

if TYPE_CHECKING:
    import torch

    from glmc.checkpoint.folder import Checkpoint

_SLAB = 1 << 22
"""Elements that are decoded at once."""
NAN = 255
"""The byte of an e8m0 scale that is no number."""


@functools.cache
def _pairs() -> torch.Tensor:
    import torch

    values = torch.tensor([*E2M1, *(-v for v in E2M1)])
    return torch.stack((values.repeat(16), values.repeat_interleave(16)), 1)


def e2m1(codes: torch.Tensor) -> torch.Tensor:
    """float32 [rows, 2 * width] of uint8 [rows, width]: the low half of a byte is the even column. -0.0 keeps its sign."""
    return _pairs().index_select(0, codes.reshape(-1).int()).view(codes.shape[0], -1)


@functools.cache
def _powers() -> torch.Tensor:
    import torch

    bits = torch.arange(256, dtype=torch.int32) << 23  # the exponent of float32 has the same offset, 127
    bits[0], bits[NAN] = 1 << 22, 0x7FC00000  # 2^-127 has no exponent of its own
    return bits.view(torch.float32)


def e8m0(scales: torch.Tensor) -> torch.Tensor:
    """float32 2^(byte - 127) of uint8 or float8_e8m0fnu, of the same shape; NaN for 255."""
    import torch

    return _powers().index_select(0, scales.reshape(-1).view(torch.uint8).int()).view(scales.shape)


def sound_scales(source: Source, checkpoint: Checkpoint) -> tuple[torch.Tensor, ...]:
    """The scale tensors as they stand in the file. Raises WeightNotFinite for one that is not a finite number."""
    import torch

    found = tuple(checkpoint.read(name) for name in source.scales)
    for name, tensor in zip(source.scales, found, strict=True):
        # A scale of e8m0 is always a power of two but for one byte.
        bad = (tensor.view(torch.uint8) == NAN) if source.form == "MX4" else ~torch.isfinite(tensor.float())
        if bad.any():
            at = bad.nonzero()[0].tolist()
            raise WeightNotFinite("a scale is not a finite number", file=checkpoint.info(name).file, field=name,
                                  expected="0 to 254" if source.form == "MX4" else "finite numbers",
                                  found=f"{NAN if source.form == 'MX4' else tensor.float()[tuple(at)].item()} at {at}")
    return found


def values(source: Source, codes: torch.Tensor, scales: tuple[torch.Tensor, ...], first: int = 0) -> torch.Tensor:
    """float32 [rows, in] of the rows of codes that begin at row `first` of the weight; `scales` are whole."""
    import torch

    near = (e8m0(scales[0]) if source.form == "MX4" else scales[0].float()).reshape(source.grid)
    out = codes.float() if source.form == "F8" else e2m1(codes)
    rows = torch.arange(first, first + len(codes)) // source.block[0]
    near, width = near.index_select(0, rows), source.block[1]
    if source.shape[1] % width:
        out.mul_(near.repeat_interleave(width, 1)[:, :source.shape[1]])
    else:
        out.unflatten(1, (-1, width)).mul_(near.unsqueeze(-1))
    return out.mul_(scales[1].float().reshape(())) if source.form == "NV4" else out


def decode_into(source: Source, checkpoint: Checkpoint, out: torch.Tensor) -> None:
    """Write the weight into `out` [out, in]; what is no float32 is rounded once. Holds about 4 million elements.

    Raises WeightNotFinite for a scale or a value that is not a finite number, and what reading the checkpoint raises.
    """
    import torch

    scales, info = sound_scales(source, checkpoint), checkpoint.info(source.weight)
    rows, each = source.shape[0], max(1, _SLAB // source.shape[1])
    for first in range(0, rows, each):
        codes = torch.empty((min(each, rows - first), info.shape[1]), dtype=torch_dtype(info.dtype))
        checkpoint.read_rows(source.weight, codes, first)
        found = values(source, codes, scales, first)
        if not torch.isfinite(found).all():
            at = (~torch.isfinite(found)).nonzero()[0].tolist()
            raise WeightNotFinite("a quantised weight decodes to what is not a finite number", file=info.file,
                                  field=source.weight, expected="finite numbers",
                                  found=f"{found[tuple(at)].item()} at {[first + at[0], at[1]]}")
        out[first:first + len(codes)].copy_(found)
