"""An artefact's text model as one of several ranks runs it: whether so many can, and this one's share of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from glmc.artifact import Artifact
from glmc.artifact_load import PrivateMemory
from glmc.checkpoint.tensor_bytes import torch_dtype
from glmc.errors import UsageError
from glmc.native.keep import Keep, coded
from glmc.native.keeps import keeps_of
from glmc.native.share import share
from glmc.placement import ONE_RANK, Placement, read_placement
from glmc.program import MAIN, Program
from glmc.runtime.ranks import Ranks

if TYPE_CHECKING:
    import torch

_SAFETENSORS = {"float32": "F32", "bfloat16": "BF16"}
_LARGE = 1 << 21
"""Bytes of a huge page."""


def open_placement(artifact: Artifact, ranks: int) -> Placement:
    """What the artefact says of ranks. Raises UsageError where so many cannot run it, before a weight is read."""
    engine = artifact.manifest["engine"]
    if engine in ONE_RANK:
        raise UsageError(f"the engine {engine} runs on one rank: its regions are compiled for whole weights", field="ranks",
                         expected=1, found=ranks, hint="compile it with --target cpu")
    placed = read_placement(artifact.json("program.json"), lambda name: artifact.read(f"regions/{name}.region").decode())
    able = () if placed is None else placed.ranks
    if placed is None or ranks not in able:
        raise UsageError("the model cannot be cut for so many ranks", field="ranks", file=artifact.folder, found=ranks,
                         expected=", ".join(map(str, [1, *able])), hint="`glmc inspect` tells what is cut, and why not more")
    return placed


class Share:
    """Rank `ranks.rank`'s part of an artefact: its program, how its weights are kept, and the weights out of the whole ones."""

    def __init__(self, artifact: Artifact, programs: Mapping[str, Program], kept: dict[str, Keep], ranks: Ranks) -> None:
        """kept: how the whole weights are kept. Raises UsageError."""
        self.ranks, self._whole = ranks, kept
        self.placed = open_placement(artifact, ranks.size)
        self.program = self.placed.program.at(ranks.size)
        own = keeps_of({**programs, MAIN: self.program}, artifact.manifest["engine"], artifact.manifest.get("quant"),
                       coded(kept)) if kept else {}
        self.kept = {**kept, **own}

    def cutting(self, place: torch.device) -> Callable[[str, torch.Tensor], torch.Tensor]:
        """What makes of a whole weight on the CPU this rank's, at `place`, in memory of its own."""
        return lambda name, whole: _own(self._share(name, whole), name, place)

    def _share(self, name: str, whole: torch.Tensor) -> torch.Tensor:
        cut, rank, size = self.placed.cuts.get(name), self.ranks.rank, self.ranks.size
        if cut is None:
            return whole
        return share(whole, self._whole[name], self.kept[name], cut, rank, size) if name in self._whole else cut.share(
            whole, rank, size)


def bytes_of(programs: Iterable[Program], kept: dict[str, Keep]) -> int:
    """Bytes of the weights of these programs, as they are kept."""
    specs = {name: spec for program in programs for name, spec in program.weights().items()}
    stored = {name: kept[name].stored() if name in kept else (_SAFETENSORS[spec.dtype], spec.shape)
              for name, spec in specs.items()}
    return sum(math.prod(map(int, shape)) * torch_dtype(dtype).itemsize for dtype, shape in stored.values())


def _own(weight: torch.Tensor, name: str, place: torch.device) -> torch.Tensor:
    """A copy that no whole weight's memory hangs on; a large one on the CPU lies in huge pages, as loaded weights do."""
    if place.type != "cpu":
        return weight.to(place)
    if weight.nbytes < _LARGE:
        return weight.clone()
    room = PrivateMemory(weight.nbytes, Path(name)).whole
    return room.view(weight.dtype).view(weight.shape).copy_(weight)
