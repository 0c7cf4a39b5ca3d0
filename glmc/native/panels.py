"""The forms in which native code keeps a matrix: panels of 32 outputs, as glmc/native/forms.hpp reads them.

`pack` and `unpack` are each other's inverse up to the form's rounding; `pack_codes` takes a quantised matrix as a checkpoint
has it, and rounds nothing. Q8 and Q4 share a scale among 32 inputs of an output: int8 takes the largest value, int4 the scale
with the least squared error of a few. MX4, F8 and NV4 are MXFP4, FP8 and NVFP4.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from glmc import native
from glmc.errors import InternalError, StorageError, WeightMismatch

if TYPE_CHECKING:
    import torch

PANEL, GROUP = 32, 32
FORMS = ("F32", "BF16", "Q8", "Q4", "MX4", "F8", "NV4")
"""Names of the forms; a form's number is its place here, as with_form of forms.hpp counts."""
CODED = FORMS[4:]
"""Forms that a checkpoint may have; `pack_codes` takes them as they are."""
F8_GROUP = 128
"""Inputs of an output that share a scale in F8."""
_KINDS = ("float32", "bfloat16", "float16")
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_SMALL = 1 << 20
"""Elements up to which one thread packs."""


def _up(n: int, by: int) -> int:
    return -(-n // by)


def shape(form: str, sizes: tuple[int, ...], halves: bool = False) -> tuple[str, tuple[int, ...]]:
    """(safetensors dtype, shape) of a packed matrix [N, K], or of experts [E, N, K]."""
    *experts, rows, width = sizes
    panels = _up(rows // 2, PANEL // 2) if halves else _up(rows, PANEL)
    groups = _up(width, GROUP)
    rest: tuple[int, ...] = {
        "F32": (width, PANEL), "BF16": (_up(width, 2), PANEL, 2), "Q8": (groups, 1088), "Q4": (groups, 576),
        "MX4": (_up(groups, 2), 1088), "F8": (128 * (_up(width, F8_GROUP) + _up(width, 4)),), "NV4": (128 + 576 * groups,),
    }[form]
    return form if form in ("F32", "BF16") else "U8", (*experts, panels, *rest)


def pack(matrix: torch.Tensor, form: str, out: torch.Tensor, halves: bool = False) -> None:
    """Write `matrix` [N, K], any float dtype, into `out` of `shape(form, ...)`. halves: rows 0 to N / 2 and the others stand
    side by side. Experts [E, N, K] one after another. Raises InternalError for an `out` of another shape, StorageError."""
    if matrix.dim() == 3:
        for one, place in zip(matrix, out, strict=True):
            pack(one, form, place, halves)
        return
    if form in CODED:
        from glmc.native.quantise import quantised

        pack_codes(form, *quantised(matrix, form), out=out, halves=halves)
        return
    if (kind := str(matrix.dtype).removeprefix("torch.")) not in _KINDS:
        matrix, kind = matrix.float(), "float32"
    if matrix.stride(1) != 1:
        matrix = matrix.contiguous()
    made = native.Packing(kind=_KINDS.index(kind), source=matrix.data_ptr(), stride=matrix.stride(0) * matrix.element_size())
    _run(made, form, (matrix.shape[0], matrix.shape[1]), out, halves)


def pack_codes(form: str, codes: torch.Tensor, scales: torch.Tensor, factor: torch.Tensor | float = 1.0,
               block: tuple[int, int] = (1, GROUP), *, out: torch.Tensor, halves: bool = False) -> None:
    """Write a quantised matrix into `out` of `shape(form, (N, K), halves)`, without rounding; experts one after another.

    MX4: codes uint8 [N, K / 2], of two the even one low; scales uint8 [N, K / 32], powers of 2 and 127.
    NV4: codes as MX4's; scales e4m3 [N, K / 16]; factor float32, one or [N], or [E] or [E, N] of experts.
    F8: codes e4m3 [N, K]; scales float [ceil(N / b), ceil(K / c)], each of a block of b outputs by c inputs; c is a multiple
    of 128 or at least K. e4m3 may be given as uint8.

    Raises WeightMismatch for a scale that is not a number, or blocks that the form does not have; InternalError for shapes that
    do not fit; StorageError.
    """
    import torch

    if codes.dim() == 3:
        factors = torch.as_tensor(factor, dtype=torch.float32).expand(codes.shape[0], *torch.as_tensor(factor).shape[1:])
        for one, scale, own, place in zip(codes, scales, factors, out, strict=True):
            pack_codes(form, one, scale, own, block, out=place, halves=halves)
        return
    codes = codes.contiguous().view(torch.uint8)
    rows, width = codes.shape[0], codes.shape[1] * (1 if form == "F8" else 2)
    made = native.Packing(kind=3, source=codes.data_ptr(), stride=codes.stride(0))
    if form == "F8":
        each = _of_rows(scales, block, rows, width)
    else:
        each = scales.contiguous().view(torch.uint8)
        if bool((each == 255 if form == "MX4" else each & 127 == 127).any()):
            raise WeightMismatch("a scale of quantised weights is not a number", field=form)
    expected = (rows, _up(width, {"MX4": 32, "F8": F8_GROUP, "NV4": 16}[form]))
    if tuple(each.shape) != expected:
        raise InternalError("scales do not fit their codes", field=form, expected=expected, found=tuple(each.shape))
    factors = (torch.as_tensor(factor, dtype=torch.float32) * 128).expand(rows).contiguous()
    made.scales, made.scale_stride, made.factors = each.data_ptr(), each.stride(0) * each.element_size(), factors.data_ptr()
    _run(made, form, (rows, width), out, halves)


def _of_rows(scales: torch.Tensor, block: tuple[int, int], rows: int, width: int) -> torch.Tensor:
    """Scales of blocks -> float32 [N, ceil(K / 128)], times 256."""
    down, across = block
    if across % F8_GROUP and across < width:
        raise WeightMismatch("the native library keeps FP8 with a scale for 128 inputs", field="F8", found=list(block),
                             expected=f"blocks of a multiple of {F8_GROUP} inputs, or of all")
    expected = (_up(rows, down), _up(width, across))
    if tuple(scales.shape) != expected:
        raise InternalError("scales do not fit their codes", field="F8", expected=expected, found=tuple(scales.shape))
    groups = _up(width, F8_GROUP)
    repeats = _up(across, F8_GROUP) if across < width else groups
    return (scales.float() * 256).repeat_interleave(down, 0)[:rows].repeat_interleave(repeats, 1)[:, :groups].contiguous()


def _run(made: native.Packing, form: str, sizes: tuple[int, int], out: torch.Tensor, halves: bool) -> None:
    import torch

    expected = shape(form, sizes, halves)[1]
    if tuple(out.shape) != expected or not out.is_contiguous():
        raise InternalError("there is other room than the panels of a matrix take", field=form, expected=expected,
                            found=tuple(out.shape))
    made.form, made.out, made.halves = FORMS.index(form), out.data_ptr(), int(halves)
    made.rows, made.width = sizes
    threads = torch.get_num_threads() if sizes[0] * sizes[1] > _SMALL else 1
    if native.library().glmc_pack(ctypes.byref(made), threads):
        raise StorageError("there is no memory for a thread that packs weights", expected=f"{threads} threads")


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
        panels = _values(packed, form, width).transpose(1, 2).flatten(2)
    panels = panels[..., :width]
    if halves:
        return torch.cat([part.flatten(0, 1)[:rows // 2] for part in panels.chunk(2, 1)])
    return panels.flatten(0, 1)[:rows]


def _values(packed: torch.Tensor, form: str, width: int) -> torch.Tensor:
    """Packed panels -> float32 [panels, groups, 32 outputs, the group's inputs], zeros past K."""
    import torch

    if form in ("Q8", "Q4"):
        scales = packed[..., :2 * PANEL].contiguous().view(torch.float16).float()
        codes = _codes(packed[..., 2 * PANEL:], form != "Q8")
        return (codes.float() - (128 if form == "Q8" else 8)) * scales.unsqueeze(-1)
    if form == "F8":
        filled = torch.nn.functional.pad(packed, (0, -packed.shape[1] % (128 + PANEL * F8_GROUP)))
        groups = filled.unflatten(1, (-1, 128 + PANEL * F8_GROUP))
        scales = groups[..., :128].contiguous().view(torch.float32) / 256
        turned = _codes(groups[..., 128:], False).unflatten(3, (-1, 4))[..., [0, 2, 1, 3]].flatten(3)
        codes = (turned >> 1 | turned << 7).masked_fill_(turned == 1, 127)
        return codes.view(torch.float8_e4m3fn).float() * scales.unsqueeze(-1)
    table = torch.tensor((*E2M1, *(-x for x in E2M1)))
    if form == "MX4":
        exponents = packed[..., :2 * PANEL].unflatten(2, (2, PANEL)).flatten(1, 2).int()
        scales = (exponents << 23).where(exponents > 0, torch.tensor(1 << 22, dtype=torch.int32)).view(torch.float32)
        codes = _codes(packed[..., 2 * PANEL:].unflatten(2, (2, -1)).flatten(1, 2), True)
        return table[codes.int()] * scales.unsqueeze(-1)
    factors = packed[:, :4 * PANEL].contiguous().view(torch.float32) / 128
    groups = packed[:, 4 * PANEL:].unflatten(1, (-1, 576))
    scales = groups[..., :2 * PANEL].contiguous().view(torch.float8_e4m3fn).float().unflatten(2, (2, PANEL)).transpose(2, 3)
    values = table[_codes(groups[..., 2 * PANEL:], True).int()].unflatten(3, (2, 16)) * scales.unsqueeze(-1)
    return values.flatten(3) * factors.view(-1, 1, PANEL, 1)


def _codes(lines: torch.Tensor, nibbles: bool) -> torch.Tensor:
    """uint8 [panels, groups, lines of 128 bytes] -> codes [panels, groups, 32 outputs, inputs]."""
    import torch

    codes = lines.unflatten(2, (-1, PANEL, 4))
    if nibbles:
        codes = torch.stack((codes & 15, codes >> 4), 3).flatten(2, 3)
    return codes.transpose(2, 3).flatten(3)
