"""Embeddings with features in the place of images, in the steps of the CPU's kernel."""

from __future__ import annotations

from glmc.kernels.place_media.cpu import accepts, run

__all__ = ["accepts", "run"]
