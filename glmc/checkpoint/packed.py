"""A recipe's last step for a weight with a Keep: the matrix in panels, quantised where asked, or in the checkpoint's codes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glmc.checkpoint.coded import codes_of
from glmc.checkpoint.recipe import FLOATS, SLAB, Recipe, Slice, Stack, Take, Tensors
from glmc.errors import WeightMismatch
from glmc.native import panels
from glmc.native.keep import Keep

if TYPE_CHECKING:
    import torch

    from glmc.checkpoint.folder import Checkpoint


@dataclass(frozen=True)
class Packed(Recipe):
    """The source in the form that `keep` names. Of stacked experts one is held at a time, of a large matrix some panels."""

    source: Recipe
    keep: Keep

    def parts(self) -> tuple[Recipe, ...]:
        return (self.source,)

    def shape(self, tensors: Tensors) -> tuple[int, ...]:
        found = self.source.shape(tensors)
        if found != self.keep.sizes:
            raise WeightMismatch("a matrix has another shape", field=self.source.names()[0],
                                 expected=list(self.keep.sizes), found=list(found))
        return self.keep.stored()[1]

    def dtype(self, tensors: Tensors) -> str:
        if (found := self.source.dtype(tensors)) not in FLOATS:
            raise WeightMismatch("a matrix is not of floats", field=self.source.names()[0], found=found,
                                 expected=", ".join(FLOATS))
        return self.keep.stored()[0]

    def fill(self, checkpoint: Checkpoint, out: torch.Tensor) -> None:
        if isinstance(self.source, Stack):
            for part, place in zip(self.source.sources, out, strict=True):
                self._pack(part, checkpoint, place)
        else:
            self._pack(self.source, checkpoint, out)

    def pieces(self, checkpoint: Checkpoint, out: tuple[int, ...], dtype: torch.dtype) -> Iterator[tuple[int, torch.Tensor]]:
        import torch

        if isinstance(self.source, Stack):
            for number, part in enumerate(self.source.sources):
                made = torch.empty((1, *out[1:]), dtype=dtype)
                self._pack(part, checkpoint, made[0])
                yield number, made
            return
        nbytes = checkpoint.info(self.source.name).nbytes if isinstance(self.source, Take) else 0
        if nbytes <= SLAB or self.keep.halves or self.keep.split:
            yield from super().pieces(checkpoint, out, dtype)
            return
        rows = self.keep.sizes[0]
        each = max(1, rows * SLAB // nbytes // panels.PANEL) * panels.PANEL
        for first in range(0, rows, each):
            part = Slice(self.source, 0, first, min(first + each, rows))
            made = torch.empty((-(-(part.stop - first) // panels.PANEL), *out[1:]), dtype=dtype)
            self._pack(part, checkpoint, made)
            yield first // panels.PANEL, made

    def _pack(self, part: Recipe, checkpoint: Checkpoint, out: torch.Tensor) -> None:
        if self.keep.form in panels.CODED:
            self.keep.put(*codes_of(part, checkpoint), out)
        else:
            self.keep.pack(part.build(checkpoint), out)

    def to_json(self) -> dict[str, Any]:
        return {"step": "packed", **self.keep.to_json(), "source": self.source.to_json()}
