"""A quantised matrix as floats, by plain torch."""

from __future__ import annotations

import torch

from glmc.kernels.dequantise import Coded

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def accepts(site) -> str | None:
    return None


def run(weight: Coded, dtype: torch.dtype) -> torch.Tensor:
    """The matrix [..., O, I] in `dtype`, rounded once."""
    codes, scales, width = weight.codes, weight.scales, weight.shape[-1]
    if weight.form == "F8":
        values = codes.contiguous().view(torch.float8_e4m3fn).float()
    else:
        table = torch.tensor((*_E2M1, *(-x for x in _E2M1)), device=codes.device)
        values = table[torch.stack((codes & 15, codes >> 4), -1).flatten(-2).int()]
        if weight.form == "MX4":
            bits = (scales.int() << 23).where(scales > 0, torch.tensor(1 << 22, dtype=torch.int32, device=codes.device))
            scales = bits.view(torch.float32)
        else:
            scales = scales.contiguous().view(torch.float8_e4m3fn).float()
    values = values * scales.repeat_interleave(weight.group, -1)[..., :width]
    return (values if weight.factors is None else values * weight.factors.unsqueeze(-1)).to(dtype)
