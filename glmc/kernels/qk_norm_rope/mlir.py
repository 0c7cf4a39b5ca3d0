"""RMS norm of each head and RoPE in the steps of the CPU's kernel."""

from __future__ import annotations

from glmc.kernels.qk_norm_rope.cpu import accepts, run

__all__ = ["accepts", "run"]
