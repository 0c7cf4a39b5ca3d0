"""RoPE in the steps of the CPU's kernel: slices and products that every importer takes."""

from __future__ import annotations

from glmc.kernels.rope.cpu import accepts, run

__all__ = ["accepts", "run"]
