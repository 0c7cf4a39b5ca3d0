"""Attention over the cache in the steps of the CPU's kernel."""

from __future__ import annotations

from glmc.kernels.attention.cpu import accepts, run

__all__ = ["accepts", "run"]
