"""How latent attention's matrix is kept: of each head what goes into its query, makes its keys and makes its values.

The published kv_b [H (N + V), R] makes every head's plain key channels and value from a compressed row. Kept are, a head after
another, three matrices in panels: asked [R, N] (the keys' part, transposed), keys [N, R] and values [V, R].
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from glmc.errors import InternalError
from glmc.native import panels

if TYPE_CHECKING:
    import torch

Split = tuple[int, int, int]
"""Heads, plain channels of a key, channels of a value."""


def _parts(form: str, split: Split, rank: int) -> list[tuple[tuple[int, int], tuple[int, ...]]]:
    """(sizes, packed shape) of each of a head's three."""
    _, plain, value = split
    return [(sizes, panels.shape(form, sizes)[1]) for sizes in ((rank, plain), (plain, rank), (value, rank))]


def shape(form: str, split: Split, rank: int) -> tuple[str, tuple[int, ...]]:
    """(safetensors dtype, shape) of what is kept: [H, elements]."""
    return panels.shape(form, (rank, rank))[0], (split[0], sum(math.prod(packed) for _, packed in _parts(form, split, rank)))


def _places(head: torch.Tensor, form: str, split: Split, rank: int) -> Iterator[tuple[tuple[int, int], torch.Tensor]]:
    """(sizes, packed matrix as a view) of a head's three."""
    at = 0
    for sizes, packed in _parts(form, split, rank):
        size = math.prod(packed)
        yield sizes, head[at:at + size].view(packed)
        at += size


def pack(matrix: torch.Tensor, form: str, split: Split, out: torch.Tensor) -> None:
    """Write `matrix` [H (N + V), R], any float dtype, into `out` of `shape(form, ...)`."""
    plain, rank = split[1], matrix.shape[1]
    for one, place in zip(matrix.unflatten(0, (split[0], -1)), out, strict=True):
        wanted = one[:plain].T, one[:plain], one[plain:]
        for part, (_, packed) in zip(wanted, _places(place, form, split, rank), strict=True):
            panels.pack(part.contiguous(), form, packed)


def unpack(packed: torch.Tensor, form: str, split: Split, sizes: tuple[int, ...]) -> torch.Tensor:
    """The matrix [H (N + V), R] in float32 that `packed` holds. Raises InternalError for another shape."""
    import torch

    rank = sizes[1]
    if tuple(packed.shape) != shape(form, split, rank)[1]:
        raise InternalError("a packed latent has another shape", expected=shape(form, split, rank)[1],
                            found=tuple(packed.shape))
    heads = []
    for head in packed:
        _, keys, values = [panels.unpack(part, form, each) for each, part in _places(head, form, split, rank)]
        heads += [keys, values]
    return torch.cat(heads)
