"""A rank's share of a weight as it is kept: of panels and codes the bytes themselves, so that nothing is rounded again.

Outputs may be cut anywhere: where a share does not begin and end with a panel its outputs are put into others. Inputs are cut
only where no scale is shared across the cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from glmc.errors import InternalError
from glmc.native.keep import Keep
from glmc.native.panels import PANEL
from glmc.placement import Cut, Placement

if TYPE_CHECKING:
    import torch

_UNITS = {"F32": (1, 128), "BF16": (2, 128), "Q8": (32, 1088), "Q4": (32, 576), "MX4": (64, 1088), "F8": (128, 4224),
          "NV4": (32, 576)}
"""Form -> inputs that lie together in a panel, and their bytes."""
_HEADS = {"NV4": 128}
"""Bytes of a panel before its inputs."""
_STRIPS = {"F32": [4], "BF16": [4], "Q8": [2] + 8 * [4], "Q4": [2] + 4 * [4], "MX4": [1, 1] + 8 * [4], "F8": 33 * [4],
           "NV4": [1, 1] + 4 * [4]}
"""Of a unit: bytes of each of the panel's outputs, one after another, as many times as there are."""
_FLOATS = ("F32", "BF16")


def unit(keep: Keep) -> int:
    """Inputs that only one rank may have all of."""
    if keep.gpu:
        from glmc.kernels.dequantise import GROUPS

        return GROUPS[keep.form]
    return _UNITS[keep.form][0] if keep.packed and keep.form not in _FLOATS else 1


def fits(keep: Keep, cut: Cut, ranks: int) -> bool:
    """Whether so many ranks can have shares."""
    return cut.dim != -1 or len(keep.sizes) == 1 or cut.size // ranks % unit(keep) == 0


def degrees(placement: Placement, keeps: Mapping[str, Keep]) -> list[int]:
    """How many ranks may run a model, from 2 on: they divide every size, and cut no group of a quantised matrix. keeps: of the
    whole weights."""
    return [n for n in placement.degrees()
            if all(fits(keeps[name], cut, n) for name, cut in placement.cuts.items() if name in keeps)]


def share(tensor: torch.Tensor, keep: Keep, own: Keep, cut: Cut, rank: int, ranks: int) -> torch.Tensor:
    """Rank `rank`'s of `ranks` shares of a weight that is kept so. own: how the share is kept. Raises InternalError."""
    import torch

    if (own.sizes, own.form, own.halves) != (cut.of(keep.sizes, ranks), keep.form, keep.halves):
        raise InternalError("a share is not kept as the whole weight is", field=keep.form, expected=keep.halves,
                            found=(own.form, own.halves, own.sizes))
    if keep.split:
        heads = keep.split[0] // ranks
        return tensor[rank * heads:(rank + 1) * heads].clone()
    if keep.gpu and cut.dim == -1:
        return _coded_columns(tensor, keep, own, cut, rank, ranks)
    if keep.gpu or not keep.packed:
        return cut.share(tensor, rank, ranks)
    dtype, shape = tensor.dtype, own.stored()[1]
    flat = tensor.contiguous().view(torch.uint8).flatten(len(keep.matrix) - 1)
    if cut.dim == -2:
        made = _rows(flat, keep, own, cut.ranges(rank, ranks))
    elif cut.size // ranks % _UNITS[keep.form][0]:
        made = torch.empty(shape, dtype=dtype)  # bfloat16 inputs lie in pairs
        own.pack(cut.share(keep.held(tensor), rank, ranks), made)
    else:
        made = _columns(flat, keep.form, *cut.ranges(rank, ranks)[0])
    return made.contiguous().view(dtype).view(shape)


def _columns(flat: torch.Tensor, form: str, first: int, last: int) -> torch.Tensor:
    import torch

    (inputs, size), head = _UNITS[form], _HEADS.get(form, 0)
    return torch.cat((flat[..., :head], flat[..., head + first // inputs * size:head + last // inputs * size]), -1)


def _rows(flat: torch.Tensor, keep: Keep, own: Keep, ranges: list[tuple[int, int]]) -> torch.Tensor:
    """flat: uint8 [..., panels, bytes]."""
    import torch

    rows = keep.sizes[-2]
    each = PANEL // 2 if keep.halves else PANEL
    if keep.halves and (len(ranges) != 2 or [n - rows // 2 for n in ranges[1]] != list(ranges[0])):
        raise InternalError("halves of a matrix that are not cut alike", found=ranges)
    wanted = ranges[:1] if keep.halves else ranges
    if all(a % each == 0 and (b % each == 0 or at == len(wanted) - 1) for at, (a, b) in enumerate(wanted)):
        return torch.cat([flat[..., a // each:-(-b // each), :] for a, b in wanted], -2)
    places = _outputs(keep.form, flat.shape[-1])
    outputs = flat[..., places.flatten()].unflatten(-1, tuple(places.shape))  # [..., panels, 32, bytes of an output]
    parts = [part.flatten(-3, -2) for part in outputs.split(each, -2)]
    made = [torch.cat([part[..., a:b, :] for a, b in wanted], -2) for part in parts]
    missing = -made[0].shape[-2] % each
    filled = [torch.nn.functional.pad(part, (0, 0, 0, missing)).unflatten(-2, (-1, each)) for part in made]
    out = flat.new_zeros(*flat.shape[:-2], filled[0].shape[-3], flat.shape[-1])
    out[..., places.flatten()] = torch.cat(filled, -2).flatten(-2)
    return out


def _outputs(form: str, size: int) -> torch.Tensor:
    """Where a panel of so many bytes has those of each output: int64 [32, bytes of an output]."""
    import torch

    strips = [4] if form in _HEADS else []
    while PANEL * sum(strips) < size:
        strips += _STRIPS[form][:(size - PANEL * sum(strips)) // PANEL]
    found, at = [], 0
    for width in strips:
        found.append(at + torch.arange(PANEL * width).view(PANEL, width))
        at += PANEL * width
    return torch.cat(found, 1)


def _coded_columns(tensor: torch.Tensor, keep: Keep, own: Keep, cut: Cut, rank: int, ranks: int) -> torch.Tensor:
    from glmc.kernels.dequantise import Coded

    (first, last), = cut.ranges(rank, ranks)
    whole, out = Coded.of(keep.form, keep.sizes, tensor), tensor.new_zeros(own.stored()[1])
    part = Coded.of(own.form, own.sizes, out)
    a_byte = 1 if keep.form == "F8" else 2
    part.codes.copy_(whole.codes[..., first // a_byte:last // a_byte])
    part.scales.copy_(whole.scales[..., first // whole.group:last // whole.group])
    if part.factors is not None and whole.factors is not None:
        part.factors.copy_(whole.factors)
    return out
