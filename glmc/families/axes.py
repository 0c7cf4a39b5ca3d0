"""Three-axis positions in a family's configuration: its sections and layout, checked, become part of the dims."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from glmc.axis_map import axis_map, layout, sections
from glmc.families.fields import Dims, rope_fields

PUBLISHED = (8, 12, 12)
"""What the published classes take where the configuration has no `mrope_section`."""


def with_axes(dims: Dims, config: dict[str, Any]) -> Dims:
    """`dims` with the sections and the layout of the text model's `config`.

    Raises ConfigError naming `mrope_section` or the key of the layout; the sections must sum to the lanes.
    """
    rope = rope_fields(config)
    return replace(dims, sections=sections(rope, dims.rotary // 2, PUBLISHED), layout=layout(rope))


def rope_axes(dims: Dims) -> tuple[int, ...]:
    """The axis of each lane; all 0 where positions have one axis."""
    if not dims.sections:
        return (0,) * (dims.rotary // 2)
    return axis_map(dims.sections, dims.rotary // 2, dims.layout)
