"""As on a CPU, by torch's own steps."""

from __future__ import annotations

from glmc.kernels.position_table import sampled as run

__all__ = ["accepts", "run"]


def accepts(site) -> str | None:
    return None
