"""As on a CPU: a gather and a choice, which torch does there too."""

from __future__ import annotations

from glmc.kernels.place_media.cpu import accepts, run

__all__ = ["accepts", "run"]
