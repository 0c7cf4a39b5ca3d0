"""Latent attention in the steps of the CPU's kernel: closed for one new token a row, opened for many."""

from __future__ import annotations

from glmc.kernels.latent_attention.cpu import accepts, run

__all__ = ["accepts", "run"]
