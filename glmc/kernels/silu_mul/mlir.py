"""SiLU times up in the steps of the CPU's kernel, which the compiler behind MLIR makes one loop."""

from __future__ import annotations

from glmc.kernels.silu_mul.cpu import accepts, run

__all__ = ["accepts", "run"]
