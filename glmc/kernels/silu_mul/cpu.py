"""SiLU of the gate times the up projection; the gate's activation is rounded to its dtype, as published."""

from __future__ import annotations

import torch


def accepts(site) -> str | None:
    return None


def run(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """gate, up [..., I] -> [..., I]."""
    wide = gate.float()
    return (wide / (1 + torch.exp(-wide))).to(gate.dtype) * up
