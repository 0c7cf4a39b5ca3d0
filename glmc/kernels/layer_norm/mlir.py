"""Layer norm in the steps of the CPU's kernel: the compiler behind MLIR makes them one pass."""

from __future__ import annotations

from glmc.kernels.layer_norm.cpu import accepts, run

__all__ = ["accepts", "run"]
