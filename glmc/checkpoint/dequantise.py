"""A recipe's first step for quantised weights, and the checkpoint as it was before it was quantised."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glmc.checkpoint.decode import decode_into
from glmc.checkpoint.formats import PLAIN, SCALES, UNUSED, Block, Source, source_of
from glmc.checkpoint.recipe import Cast, Recipe, Take, Tensors

if TYPE_CHECKING:
    import torch

    from glmc.checkpoint.folder import Checkpoint


@dataclass(frozen=True)
class Dequantise(Recipe):
    """The quantised weight `source` in float32; where the result has another dtype it is rounded once."""

    source: Source

    def names(self) -> list[str]:
        return [self.source.weight, *self.source.scales]

    def parts(self) -> tuple[Recipe, ...]:
        return ()

    def shape(self, tensors: Tensors) -> tuple[int, ...]:
        return self.source.shape

    def dtype(self, tensors: Tensors) -> str:
        return "F32"

    def fill(self, checkpoint: Checkpoint, out: torch.Tensor) -> None:
        decode_into(self.source, checkpoint, out)

    def to_json(self) -> dict[str, Any]:
        return {"step": "dequantise", "form": self.source.form, "name": self.source.weight, "scales": list(self.source.scales),
                "block": list(self.source.block)}


def dequantised(recipe: Recipe, tensors: Tensors, block: Block | None = None) -> Recipe:
    """The tree with every `Take` of a quantised weight replaced; the same tree where there is none.

    Plain parts beside a quantised one are widened to float32, so that all have one dtype. Raises what `source_of` raises.
    """
    made = _replaced(recipe, lambda take: _decoding(take, tensors, block))
    return made if made == recipe else _replaced(made, lambda take: _widened(take, tensors))


def _decoding(take: Take, tensors: Tensors, block: Block | None) -> Recipe:
    source = source_of(take.name, tensors, block)
    return take if source is None else Dequantise(source)


def _widened(take: Take, tensors: Tensors) -> Recipe:
    info = tensors.get(take.name)
    return Cast(take, "F32") if info is not None and info.dtype in PLAIN and info.dtype != "F32" else take


def _replaced(recipe: Recipe, leaf: Any) -> Recipe:
    if isinstance(recipe, Take):
        return leaf(recipe)
    if not recipe.parts():
        return recipe
    made: Any = recipe
    if hasattr(recipe, "sources"):
        return dataclasses.replace(made, sources=tuple(_replaced(part, leaf) for part in recipe.parts()))
    return dataclasses.replace(made, source=_replaced(recipe.parts()[0], leaf))


class Expanded:
    """A checkpoint read as if it had never been quantised: weights in float32, scales hidden."""

    def __init__(self, checkpoint: Checkpoint, block: Block | None = None) -> None:
        self.checkpoint, self.block = checkpoint, block

    def names(self) -> list[str]:
        """Every tensor but the scales."""
        tensors = self.checkpoint.tensors
        hidden = {name + end for name in tensors for end in SCALES if name + end in tensors}
        return [name for name in tensors if name not in hidden and not re.fullmatch(UNUSED, name)]

    def read(self, name: str) -> torch.Tensor:
        """Tensor `name` as it stands, or decoded to float32 [out, in] where it is quantised. Raises what `source_of`,
        decoding and `Checkpoint.read` raise."""
        source = source_of(name, self.checkpoint.tensors, self.block)
        return self.checkpoint.read(name) if source is None else Dequantise(source).build(self.checkpoint)
