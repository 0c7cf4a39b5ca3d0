"""Every parameter is made from the checkpoint and every tensor is used, or all that disagrees is listed at once."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from glmc.checkpoint.folder import Checkpoint, listing
from glmc.checkpoint.recipe import FLOATS, Recipe
from glmc.checkpoint.tensor_bytes import torch_dtype
from glmc.errors import CheckpointError, WeightMismatch, WeightMissing, WeightUnused

if TYPE_CHECKING:
    import torch

AHEAD = 8
"""Pieces that may be made before the one that is being written."""

@dataclass(frozen=True)
class Want:
    """One parameter of the architecture: how it is made, its shape, and its dtype as safetensors names it ("BF16")."""

    recipe: Recipe
    shape: tuple[int, ...]
    dtype: str


class Sink(Protocol):
    """What `pack` writes to: the artefact's WeightWriter, or a test's dict."""

    def write(self, name: str, tensor: torch.Tensor, first: int = 0) -> None:
        """Take one parameter, or its rows from `first` on; the pieces of a parameter come in order. Called by one thread."""


def _misfit(param: str, want: Want, checkpoint: Checkpoint) -> str | None:
    tensors = checkpoint.tensors
    try:
        shape, dtype = want.recipe.shape(tensors), want.recipe.dtype(tensors)
    except WeightMismatch as fault:
        return f"{param}: {fault.what} ({fault.field}: expected {fault.expected}, found {fault.found})"
    if shape != tuple(want.shape):
        return f"{param}: expected shape {list(want.shape)}, found {list(shape)} from {_from(want)}"
    if want.dtype in FLOATS:
        odd = sorted({leaf.dtype(tensors) for leaf in want.recipe.leaves()} - set(FLOATS))
        if odd:
            return f"{param}: expected dtype {' or '.join(FLOATS)}, found {', '.join(odd)} from {_from(want)}"
    elif dtype != want.dtype:
        return f"{param}: expected dtype {want.dtype}, found {dtype} from {_from(want)}"
    return None


def _from(want: Want) -> str:
    names = want.recipe.names()
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def check(checkpoint: Checkpoint, wanted: Mapping[str, Want], leftovers: Iterable[str] = ()) -> list[str]:
    """Compare the checkpoint with the architecture, reading headers only; returns the leftover tensors, sorted.

    `leftovers` are regular expressions (full match) of tensors that no parameter needs and that may stay unused.
    Raises one error that lists everything: WeightMissing when a tensor is absent, else WeightMismatch when a shape or
    dtype is wrong, else WeightUnused when a tensor is neither consumed nor a leftover.
    """
    missing, misfits, used = [], [], set()
    for param, want in wanted.items():
        names = want.recipe.names()
        used.update(names)
        absent = [name for name in names if name not in checkpoint.tensors]
        missing += [name if name == param else f"{name} (for {param})" for name in absent]
        if not absent and (misfit := _misfit(param, want, checkpoint)):
            misfits.append(misfit)
    patterns = [re.compile(pattern) for pattern in leftovers]
    idle = sorted(set(checkpoint.tensors) - used)
    allowed = [name for name in idle if any(pattern.fullmatch(name) for pattern in patterns)]
    unused = sorted(set(idle) - set(allowed))
    kinds: list[tuple[type[CheckpointError], str, list[str]]] = [
        (WeightMissing, "tensors that the architecture needs and the checkpoint lacks", missing),
        (WeightMismatch, "parameters of another shape or dtype", misfits),
        (WeightUnused, "tensors that no parameter of the architecture uses", unused),
    ]
    bad = [(error, title, lines) for error, title, lines in kinds if lines]
    if bad:
        text = "\n".join(f"{len(lines)} {title}:\n{listing(lines)}" for _, title, lines in bad)
        raise bad[0][0](f"the checkpoint and the architecture disagree\n{text}", file=checkpoint.folder,
                        hint="nothing is ever filled in: the checkpoint must hold every parameter")
    return allowed


def pack(checkpoint: Checkpoint, wanted: Mapping[str, Want], writer: Sink,
         progress: Callable[[str, int], None] | None = None) -> None:
    """Make every parameter in the order of `wanted`, a piece at a time, while `writer` takes those before in another thread.

    Held at once are a few pieces: an expert each, or a slab of a large matrix. `progress(param, nbytes)` is called after each
    parameter. Call `check` before. Raises what reading and writing raise, and CheckpointChanged when the folder was edited
    meanwhile.
    """
    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(1) as beside:
        for param, want in wanted.items():
            size = 0
            for first, tensor in want.recipe.pieces(checkpoint, want.shape, torch_dtype(want.dtype)):
                waiting.append(beside.submit(writer.write, param, tensor, first))
                size += tensor.numel() * tensor.element_size()
                if len(waiting) > AHEAD:
                    waiting.popleft().result()
            if progress is not None:
                progress(param, size)
        for written in waiting:
            written.result()
    checkpoint.check_unchanged()
