"""cos and sin of every token's angles in the steps of the CPU's kernel."""

from __future__ import annotations

from glmc.kernels.rope_table.cpu import accepts, run

__all__ = ["accepts", "run"]
