"""Which weights an artefact wants exactly as one tensor of the checkpoint, and why the others are copied."""

from __future__ import annotations

import math
from collections.abc import Mapping

from glmc.checkpoint.dequantise import Dequantise
from glmc.checkpoint.pack import Want
from glmc.checkpoint.packed import Packed
from glmc.checkpoint.recipe import Take, Tensors
from glmc.checkpoint.safetensors_header import TensorInfo
from glmc.checkpoint.tensor_bytes import BITS


def linkable(wanted: Mapping[str, Want], tensors: Tensors) -> tuple[dict[str, TensorInfo], list[str]]:
    """(parameter -> the tensor that it is, notes on how many weights are linked and how many are copied and why).

    Call `check` before, which compares shapes.
    """
    linked: dict[str, TensorInfo] = {}
    copied: dict[str, list[int]] = {}
    for name, want in wanted.items():
        reason = _reason(want, tensors)
        if reason is None and isinstance(want.recipe, Take):
            linked[name] = tensors[want.recipe.name]
        else:
            copied.setdefault(str(reason), []).append(math.prod(want.shape) * BITS[want.dtype] // 8)
    return linked, [_note("linked", [info.nbytes for info in linked.values()]),
                    *(f"{_note('copied', sizes)}; {reason}" for reason, sizes in sorted(copied.items()))]


def _reason(want: Want, tensors: Tensors) -> str | None:
    """Why a weight has bytes of its own, or None."""
    recipe = want.recipe
    if isinstance(recipe, Packed):
        return "the engine reads them in panels"
    if any(isinstance(leaf, Dequantise) for leaf in recipe.leaves()):
        return "they are quantised in the checkpoint"
    if len(recipe.names()) > 1:
        return "each is made of several tensors"
    if (found := recipe.dtype(tensors)) != want.dtype:
        return f"they are {found} in the checkpoint and {want.dtype} here"
    return None if isinstance(recipe, Take) else "each is a part of a tensor, or a tensor turned"


def _note(what: str, sizes: list[int]) -> str:
    return f"weights {what}: {len(sizes)} ({sum(sizes)} bytes)"
