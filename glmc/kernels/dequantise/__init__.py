"""The op `dequantise`, and quantised matrices as GPUs read them: each output's codes, then its scales, in one row of bytes.

    form   codes of a row              scales                           factor
    MX4    two e2m1 a byte, I / 2      e8m0, one for 32 inputs          none
    F8     e4m3, I                     float32, one for 128 inputs      none
    NV4    two e2m1 a byte, I / 2      e4m3, one for 16 inputs          float32, at the row's end

The even input is the low half of a byte. Scales begin at a multiple of 4 bytes and rows at one of 16, so that 16 bytes are
loaded at once. A matrix [O, I] is one tensor uint8 [O, bytes of a row], experts [E, O, I] one of three dims.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from glmc.errors import InternalError, WeightMismatch

GROUPS = {"MX4": 32, "F8": 128, "NV4": 16}
"""Form -> neighbouring inputs of an output that share a scale."""
LARGEST = 240
"""The largest byte of an e8m0 scale that the kernels take, 2^113: they fold a power of two into it."""


def _places(form: str, width: int) -> tuple[int, int, int, int]:
    """Bytes of a row's codes, where its scales begin and end, and the bytes of all."""
    codes, groups = (width if form == "F8" else -(-width // 2)), -(-width // GROUPS[form])
    begin = -(-codes // 4) * 4
    end = begin + groups * (4 if form == "F8" else 1)
    return codes, begin, end, -(-(end + (4 if form == "NV4" else 0)) // 16) * 16


def stored(form: str, sizes: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """(safetensors dtype, shape) of a matrix [O, I] or of experts [E, O, I] in a form."""
    return "U8", (*sizes[:-1], _places(form, sizes[-1])[3])


@dataclass(frozen=True, eq=False)
class Coded:
    """A quantised matrix [O, I], or experts [E, O, I], where kernels take a tensor. codes uint8 [..., O, bytes]; scales uint8
    or float32 [..., O, groups]; factors float32 [..., O] or none. All three are views of one tensor."""

    form: str
    shape: tuple[int, ...]
    codes: torch.Tensor
    scales: torch.Tensor
    factors: torch.Tensor | None

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return GROUPS[self.form]

    @staticmethod
    def of(form: str, sizes: tuple[int, ...], rows: torch.Tensor) -> Coded:
        """The parts of `rows`, uint8 of the shape that `stored` says. Raises InternalError for another shape."""
        if (rows.dtype, tuple(rows.shape)) != (torch.uint8, stored(form, sizes)[1]):
            raise InternalError("a coded matrix has another shape", field=form, expected=stored(form, sizes),
                                found=(str(rows.dtype), tuple(rows.shape)))
        codes, begin, end, whole = _places(form, sizes[-1])
        scales = rows[..., begin:end]
        return Coded(form, sizes, rows[..., :codes], scales.view(torch.float32) if form == "F8" else scales,
                     rows[..., whole - 4:].view(torch.float32).squeeze(-1) if form == "NV4" else None)


def fill(form: str, codes: torch.Tensor, scales: torch.Tensor, factors: torch.Tensor, out: torch.Tensor) -> None:
    """Write codes [O, bytes], scales [O, groups] and factors float32 [O] of a matrix into `out`, as `stored` says; nothing is
    rounded. Raises WeightMismatch for a scale that the kernels do not take."""
    width = codes.shape[1] * (1 if form == "F8" else 2)
    made = Coded.of(form, (codes.shape[0], width), out.zero_())
    if form == "MX4" and int(scales.view(torch.uint8).max()) > LARGEST:
        raise WeightMismatch("a scale of quantised weights is larger than kernels of GPUs take", field=form,
                             expected=f"at most {LARGEST}, 2^113", found=int(scales.view(torch.uint8).max()),
                             hint="--dtype bfloat16 expands the weights")
    made.codes.copy_(codes.view(torch.uint8))
    made.scales.copy_(scales if form == "F8" else scales.view(torch.uint8))
    if made.factors is not None:
        made.factors.copy_(factors)
