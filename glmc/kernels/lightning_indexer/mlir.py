"""The indexer in the steps of the CPU's kernel."""

from __future__ import annotations

from glmc.kernels.lightning_indexer.cpu import accepts, run

__all__ = ["accepts", "run"]
