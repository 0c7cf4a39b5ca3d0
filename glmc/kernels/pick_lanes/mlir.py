"""Each lane of the last dim from the row that an axis map names: slices, or choices by constant bits."""

from __future__ import annotations

from glmc.kernels.pick_lanes.cpu import accepts, run

__all__ = ["accepts", "run"]
