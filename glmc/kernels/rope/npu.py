"""RoPE by `torch_npu.npu_rotary_mul` over the lanes that turn; the other channels are put back behind them.

All tokens stand in one row (1, T, H, 2n), since neighbours' mode takes no table of its own for each row of a batch. The
table is as wide as the lanes' channels: each angle twice, side by side or as neighbours.
"""

from __future__ import annotations

import torch

from glmc.kernels.npu import FLOATS, Contract, Limit, vendor

CONTRACT = Contract("torch_npu.npu_rotary_mul", "torch_npu 2.1", "Ascend/op-plugin docs/context/torch_npu-npu_rotary_mul.md",
                    FLOATS, {"heads": Limit(most=999), "width": Limit(least=2, most=894, multiple=2)})


def accepts(site) -> str | None:
    if site["read"] != site["write"]:
        return f"{CONTRACT.op} leaves channels where they stand; here pairs become halves"
    return CONTRACT.refusal(site["x"][0], site["cos"][0], site["sin"][0], heads=site["x"][1][-2],
                            width=2 * site["cos"][1][-1])


def doubled(table: torch.Tensor, read: int) -> torch.Tensor:
    """[..., n] -> [..., 2n], each angle for both channels of its lane."""
    return table.repeat_interleave(2, dim=-1) if read == -1 else torch.cat((table, table), dim=-1)


def run(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, read: int, write: int) -> torch.Tensor:
    """x [..., H, D], cos and sin [..., n] with 2n <= D -> [..., H, D] in x's dtype; see `glmc.rope` for read and write."""
    width, lead = 2 * cos.shape[-1], x.shape[:-2]
    flat = x.reshape(1, -1, *x.shape[-2:])
    r1, r2 = (doubled(t.expand(*lead, t.shape[-1]).reshape(1, -1, 1, t.shape[-1]), read).contiguous() for t in (cos, sin))
    turned = vendor("torch_npu").npu_rotary_mul(flat[..., :width].contiguous(), r1, r2,
                                                rotary_mode="interleave" if read == -1 else "half")
    whole = torch.cat((turned, flat[..., width:]), dim=-1) if width < x.shape[-1] else turned
    return whole.reshape(x.shape)
