"""The forms in which native code keeps a matrix: panels of 32 outputs, as glmc/native/tile.hpp lays them out.

`pack` and `unpack` are each other's inverse up to the form's rounding. Quantised forms share a scale among 32 inputs of an
output; int8 takes the largest value, int4 the scale with the least squared error of a few.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glmc.errors import InternalError

if TYPE_CHECKING:
    import torch

PANEL, GROUP = 32, 32
FORMS = ("F32", "BF16", "Q8", "Q4")
"""Names of the forms; a form's number is its place here, as with_form of tile.hpp counts."""
_OFFSET = {"Q8": 128, "Q4": 8}
_SLAB = 1 << 22
"""Elements that are packed at once, so that no second copy of a large matrix is held."""
_TRIES = tuple(1 - 0.04 * i for i in range(9))
"""int4: shares of the scale at which the largest value just fits, each of them tried."""


def _step(form: str) -> int:
    """Bytes of one group of a panel: the scales and the codes."""
    return 2 * PANEL + GROUP * PANEL // (1 if form == "Q8" else 2)


def shape(form: str, sizes: tuple[int, ...], halves: bool = False) -> tuple[str, tuple[int, ...]]:
    """(safetensors dtype, shape) of a packed matrix [N, K], or of experts [E, N, K]."""
    *experts, rows, width = sizes
    panels = -(-(rows // 2) // (PANEL // 2)) if halves else -(-rows // PANEL)
    groups = -(-width // GROUP)
    rest = {"F32": ("F32", (width, PANEL)), "BF16": ("BF16", (-(-width // 2), PANEL, 2)),
            "Q8": ("U8", (groups, _step("Q8"))), "Q4": ("U8", (groups, _step("Q4")))}[form]
    return rest[0], (*experts, panels, *rest[1])


def _beside(matrix: torch.Tensor, halves: bool) -> torch.Tensor:
    """[panels, 32, K]: rows by panel, filled with zeros; of two halves a panel takes 16 rows each."""
    import torch
    from torch.nn import functional

    parts = matrix.chunk(2) if halves else (matrix,)
    each = PANEL // len(parts)
    fill = -parts[0].shape[0] % each
    return torch.cat([functional.pad(p, (0, 0, 0, fill)).unflatten(0, (-1, each)) for p in parts], 1)


def pack(matrix: torch.Tensor, form: str, out: torch.Tensor, halves: bool = False) -> None:
    """Write `matrix` [N, K], any float dtype, into `out` of `shape(form, ...)`. halves: rows 0 to N / 2 and the others stand
    side by side. Experts [E, N, K] one after another."""
    if matrix.dim() == 3:
        for one, place in zip(matrix, out, strict=True):
            pack(one, form, place, halves)
        return
    import torch

    half = matrix.shape[0] // 2
    rows = PANEL // 2 if halves else PANEL
    slab = max(1, _SLAB // (matrix.shape[1] * PANEL))
    for first in range(0, out.shape[0], slab):
        last = min(first + slab, out.shape[0])
        if halves:
            piece = torch.cat([matrix[:half][first * rows:last * rows], matrix[half:][first * rows:last * rows]])
        else:
            piece = matrix[first * rows:last * rows]
        _pack(_beside(piece.float(), halves), form, out[first:last])


def _pack(panels: torch.Tensor, form: str, out: torch.Tensor) -> None:
    """panels float32 [n, 32, K] -> out."""
    import torch
    from torch.nn import functional

    if form == "F32":
        out.copy_(panels.transpose(1, 2))
    elif form == "BF16":
        out.copy_(functional.pad(panels, (0, panels.shape[2] % 2)).unflatten(2, (-1, 2)).transpose(1, 2))
    else:
        filled = functional.pad(panels, (0, -panels.shape[2] % GROUP))
        grouped = filled.unflatten(2, (-1, GROUP)).transpose(1, 2)  # [n, g, 32 outputs, 32 inputs]
        scales = _scales(grouped, form)
        codes = _codes(grouped, scales, form).to(torch.uint8).unflatten(3, (-1, 4)).transpose(2, 3)  # [n, g, 8, 32, 4]
        if form == "Q4":
            codes = codes[:, :, 0::2] | codes[:, :, 1::2] << 4
        out[..., :2 * PANEL].copy_(scales.half().view(torch.uint8).reshape(*out.shape[:2], -1))
        out[..., 2 * PANEL:].copy_(codes.reshape(*out.shape[:2], -1))


def _codes(grouped: torch.Tensor, scales: torch.Tensor, form: str) -> torch.Tensor:
    offset = _OFFSET[form]
    inverse = (1 / scales).where(scales != 0, scales)
    return (grouped * inverse.unsqueeze(-1)).round_().clamp_(1 - offset if form == "Q8" else -offset, offset - 1).add_(offset)


def _scales(grouped: torch.Tensor, form: str) -> torch.Tensor:
    """A scale for each output's group, rounded to half precision. grouped [n, g, 32 outputs, 32 inputs] -> [n, g, 32]."""
    if form == "Q8":
        return (grouped.abs().amax(-1) / 127).half().float()
    low, high = grouped.amin(-1), grouped.amax(-1)
    far = high.where(high > -low, low)
    best, least = far, None
    for share in _TRIES:
        scale = (far / -8 * share).half().float()
        error = (((_codes(grouped, scale, form) - 8) * scale.unsqueeze(-1)) - grouped).square_().sum(-1)
        better = None if least is None else error < least
        best = scale if better is None else scale.where(better, best)
        least = error if least is None or better is None else error.where(better, least)
    return best


def unpack(packed: torch.Tensor, form: str, sizes: tuple[int, ...], halves: bool = False) -> torch.Tensor:
    """The matrix [N, K] or experts [E, N, K] in float32 that `packed` holds. Raises InternalError for another shape."""
    import torch

    if tuple(packed.shape) != shape(form, sizes, halves)[1]:
        raise InternalError("a packed matrix has another shape", expected=shape(form, sizes, halves)[1],
                            found=tuple(packed.shape))
    if len(sizes) == 3:
        return torch.stack([unpack(one, form, sizes[1:], halves) for one in packed])
    rows, width = sizes
    if form == "F32":
        panels = packed.transpose(1, 2)
    elif form == "BF16":
        panels = packed.float().transpose(1, 2).flatten(2)
    else:
        scales = packed[..., :2 * PANEL].contiguous().view(torch.float16).float()
        codes = packed[..., 2 * PANEL:].unflatten(2, (-1, PANEL, 4))
        if form == "Q4":
            codes = torch.stack((codes & 15, codes >> 4), 3).flatten(2, 3)
        values = (codes.transpose(2, 3).flatten(3).float() - _OFFSET[form]) * scales.unsqueeze(-1)
        panels = values.transpose(1, 2).flatten(2)
    panels = panels[..., :width]
    if halves:
        return torch.cat([part.flatten(0, 1)[:rows // 2] for part in panels.chunk(2, 1)])
    return panels.flatten(0, 1)[:rows]
