"""Packed QKV to attention's inputs in the steps of the CPU's kernel, once for each of q, k and v."""

from __future__ import annotations

from glmc.kernels.split_qkv_norm_rope.cpu import accepts, run

__all__ = ["accepts", "run"]
