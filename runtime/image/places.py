"""Positions over time, height and width: of a prompt's tokens, and of those that are generated after it.

Text counts up on all three axes. Tokens of an image share one time, and their rows and columns count from there; the next
token comes behind the longer side. Generated grids go on in the same way, one after another, and an end mark follows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from glmc.errors import UsageError
from glmc.runtime.image.sizes import Grid


def of_prompt(ids: Sequence[int], begin: int, end: int, sources: Sequence[Grid]) -> tuple[torch.Tensor, int]:
    """Positions int64 [3, n] of a prompt and the first position behind it.

    begin, end: the ids of the marks around a source image's tokens; the prompt ends with one more `begin`, of the image that is
    to come. Raises UsageError where marks and sources do not fit.
    """
    begins, ends = ([place for place, token in enumerate(ids) if token == mark] for mark in (begin, end))
    inside = [last - first - 1 for first, last in zip(begins, ends, strict=False)]
    if len(begins) != len(ends) + 1 or begins[-1] != len(ids) - 1 or inside != [grid.tokens for grid in sources]:
        raise UsageError("the marks of images in the prompt are not those of the images that are given", field="prompt",
                         expected=f"{len(sources)} images, and the mark that begins the next at the end",
                         found=f"{len(begins)} marks that begin one, {len(ends)} that end one")
    parts, done, at = [], 0, 0
    for first, last, grid in zip(begins, ends, sources, strict=False):
        parts += [_text(at, first + 1 - done), _grid(at + first + 1 - done, grid)]
        at, done = at + first + 1 - done + max(grid), last
    parts.append(_text(at, len(ids) - done))
    return torch.cat(parts, 1), at + len(ids) - done


def of_grids(grids: Sequence[Grid], at: int) -> torch.Tensor:
    """Positions int64 [3, tokens + 1] of grids in the order in which they are generated, from `at` on, and of the end."""
    parts = []
    for grid in grids:
        parts.append(_grid(at, grid))
        at += max(grid)
    return torch.cat([*parts, _text(at, 1)], 1)


def _text(at: int, count: int) -> torch.Tensor:
    return torch.arange(at, at + count).expand(3, -1)


def _grid(at: int, grid: Grid) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(grid.h), torch.arange(grid.w), indexing="ij")
    return at + torch.stack([torch.zeros_like(rows), rows, columns]).flatten(1)
