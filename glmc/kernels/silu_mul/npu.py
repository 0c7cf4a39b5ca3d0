"""SiLU and multiply by `torch_npu.npu_swiglu`, which takes gate and up side by side in one tensor.

That is how the joined product leaves them; halves that do not lie so are put together first, which costs a copy.
"""

from __future__ import annotations

import torch

from glmc.kernels import differ
from glmc.kernels.npu import FLOATS, Contract, Limit, vendor

CONTRACT = Contract("torch_npu.npu_swiglu", "torch_npu 2.1", "Ascend/op-plugin, npu_swiglu(self, dim=-1)", FLOATS,
                    {"packed": Limit(least=2, multiple=2)})


def accepts(site) -> str | None:
    return differ(site, "gate", "up") or CONTRACT.refusal(site["gate"][0], site["up"][0], packed=2 * site["gate"][1][-1])


def packed(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """[..., 2I]: the tensor whose halves these are, or one made of them."""
    width = gate.shape[-1]
    together = (gate.untyped_storage().data_ptr() == up.untyped_storage().data_ptr() and gate.stride() == up.stride()
                and gate.stride(-1) == 1 and up.storage_offset() - gate.storage_offset() == width
                and all(s >= 2 * width for s, n in zip(gate.stride()[:-1], gate.shape[:-1], strict=True) if n > 1))
    if together:
        return gate.as_strided((*gate.shape[:-1], 2 * width), gate.stride(), gate.storage_offset())
    return torch.cat((gate, up), dim=-1)


def run(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """gate, up [..., I] -> [..., I]."""
    return vendor("torch_npu").npu_swiglu(packed(gate, up), dim=-1)
