"""Sigmoid routing in the steps of the CPU's kernel; the choice is torch's topk, which importers make a sort."""

from __future__ import annotations

from glmc.kernels.moe_route.cpu import accepts, run

__all__ = ["accepts", "run"]
