"""Three-axis RoPE: which axis of a token's position (0 time, 1 height, 2 width) turns each lane.

A lane is one pair of rotated channels; a rotary width of R has R / 2 lanes. Only the axis differs between the layouts, the
lane's frequency never does, so all agree on tokens whose three positions are equal. What the layouts are:

chunked              the first s0 lanes time, the next s1 height, the last s2 width; what transformers' GLM classes compute
qwen3vl_interleaved  lane i is height if i % 3 == 1 and i < 3 s1, width if i % 3 == 2 and i < 3 s2, else time. It does not
                     honour the sections where time's is not the largest: 8, 12, 12 gives 11, 11, 10
glm_interleaved      lane i asks for axis i % 3 and, where that axis has its fill, for the next one: counts are the sections

Sources: transformers 5.23 for the first two, SGLang 0.5.10.post1 (`MRotaryEmbedding`) for the third and for the keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glmc.errors import ConfigError, UnknownName

LAYOUTS = ("chunked", "qwen3vl_interleaved", "glm_interleaved")
KEYS = ("mrope_interleaved", "mrope_interleaved_glm")
"""The keys of `rope_parameters` that choose the layout."""


def axis_map(sections: Sequence[int], lanes: int, layout: str) -> tuple[int, ...]:
    """The axis of each of `lanes` lanes. Raises ConfigError (`mrope_section`) where the sections do not fit, UnknownName."""
    time, height, width = sections = _fitting(sections, lanes)
    if layout == "chunked":
        return (0,) * time + (1,) * height + (2,) * width
    if layout == "qwen3vl_interleaved":
        return tuple(i % 3 if i % 3 and i < 3 * sections[i % 3] else 0 for i in range(lanes))
    if layout == "glm_interleaved":
        left, out = list(sections), []
        for lane in range(lanes):
            axis = next(a % 3 for a in range(lane, lane + 3) if left[a % 3])
            left[axis] -= 1
            out.append(axis)
        return tuple(out)
    raise UnknownName("no such layout of three-axis positions", field="layout", expected=", ".join(LAYOUTS), found=layout)


def layout(rope: dict[str, Any]) -> str:
    """The layout that a configuration's RoPE fields ask for; chunked where they ask for none, as all published ones do.

    `mrope_interleaved_glm` alone is chunked too: where the key comes from it only refines `mrope_interleaved`.
    Raises ConfigError for a key that is neither true nor false.
    """
    for key in KEYS:
        if not isinstance(rope.get(key, False), bool):
            raise ConfigError("the field is not true or false", file="config.json", field=key, found=rope[key])
    if not rope.get("mrope_interleaved", False):
        return "chunked"
    return "glm_interleaved" if rope.get("mrope_interleaved_glm", False) else "qwen3vl_interleaved"


def sections(rope: dict[str, Any], lanes: int, default: Sequence[int]) -> tuple[int, int, int]:
    """`mrope_section` of a configuration's RoPE fields, or the published class's default where the key is missing.

    Raises ConfigError unless it is three whole numbers, none negative, that sum to `lanes`; nothing is rescaled.
    """
    return _fitting(rope.get("mrope_section", default), lanes)


def _fitting(found: Any, lanes: int) -> tuple[int, int, int]:
    whole = isinstance(found, (list, tuple)) and len(found) == 3 \
        and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in found)
    if not whole or sum(found) != lanes or not lanes:
        raise ConfigError("the sections of three-axis positions do not fit the rotary width", file="config.json",
                          field="mrope_section", expected=f"three whole numbers from 0 that sum to {lanes} lanes",
                          found=found)
    return tuple(found)


def notes(asked: str) -> list[str]:
    """What a plan says about a layout that is not the published one."""
    if asked == "chunked":
        return []
    return [f"three-axis RoPE is {asked}, as config.json asks; transformers and the published checkpoints use chunked"]
