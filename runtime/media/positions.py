"""Positions over time, height and width of a text with images and videos in it, and how the text goes on after it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from glmc.errors import UsageError
from glmc.runtime.media.resize import Grid

KINDS = {1: "image", 2: "video"}


def positions(types: Sequence[int] | np.ndarray, images: Sequence[Sequence[int]], videos: Sequence[Sequence[int]],
              merge: int) -> tuple[np.ndarray, int]:
    """int64 [3, n] and the delta for token types [n]: the next token, with number n, stands at n + delta in all rows.

    images, videos: grids (t, h, w) in patches, in the order of the text. Text counts on in all rows; an image, and each
    temporal patch of a video, keeps one time and counts its rows and columns, and what follows begins past the longer side.
    Grids are taken one after the other by their sizes, so that images need no text between them. Raises UsageError with the
    item, its grid, and both counts, where tokens and grids do not fit.
    """
    rows, deltas = batch_positions(np.asarray(types).reshape(1, -1), None, images, videos, merge)
    return rows[:, 0], int(deltas[0])


def batch_positions(types: np.ndarray, mask: np.ndarray | None, images: Sequence[Sequence[int]],
                    videos: Sequence[Sequence[int]], merge: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 [3, B, S] and [B] for types [B, S]: each row as if it stood alone without what `mask` [B, S] leaves out.

    Positions of what is left out are 0. The next token of row b stands at (its tokens that count) + delta[b]. The grids of all
    rows follow each other. See `positions`.
    """
    found = np.asarray(types)
    keep = np.ones(found.shape, bool) if mask is None else np.asarray(mask).astype(bool)
    if found.ndim != 2 or keep.shape != found.shape:
        raise UsageError("token types and mask do not fit", field="attention_mask", expected=found.shape, found=keep.shape)
    waiting = {kind: _frames(KINDS[kind], grids, merge) for kind, grids in ((1, images), (2, videos))}
    for kind, queue in waiting.items():
        expected, tokens = sum(h * w for _, h, w in queue), int((keep & (found == kind)).sum())
        if expected != tokens:
            given = images if kind == 1 else videos
            raise UsageError(f"the text does not have the tokens of its {KINDS[kind]}s", field=KINDS[kind], found=tokens,
                             expected=f"{expected} for {len(given)} with grids {[tuple(g) for g in given[:8]]}")
    made = np.zeros((3, *found.shape), np.int64)
    deltas = np.zeros(len(found), np.int64)
    for row, (kinds, kept) in enumerate(zip(found, keep, strict=True)):
        alone, deltas[row] = _row(kinds[kept], waiting)
        made[:, row, kept] = alone
    return made, deltas


def _frames(name: str, grids: Sequence[Sequence[int]], merge: int) -> deque[tuple[str, int, int]]:
    """(item, rows, columns) in tokens of each run that the grids must find; a video has one for each temporal patch."""
    queue: deque[tuple[str, int, int]] = deque()
    for number, (t, h, w) in enumerate(Grid(*map(int, g)) for g in grids):
        if min(t, h, w) < 1 or h % merge or w % merge or (name == "image" and t != 1):
            raise UsageError("the grid cannot be one", field=f"{name} {number}", found=(t, h, w),
                             expected=f"t {'= 1' if name == 'image' else 'above 0'}, h and w multiples of {merge}")
        queue.extend((f"{name} {number}", h // merge, w // merge) for _ in range(t))
    return queue


def _row(kinds: np.ndarray, waiting: dict[int, deque[tuple[str, int, int]]]) -> tuple[np.ndarray, int]:
    """One row's positions int64 [3, n] and its delta; the frames that it holds are taken from `waiting`."""
    made = np.empty((3, len(kinds)), np.int64)
    cursor = 0
    edges = [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(kinds)]
    for begin, end in pairwise(edges):
        if begin == end:
            continue
        if (kind := int(kinds[begin])) not in (0, *KINDS):
            raise UsageError("this is no token type", field="token types", expected="0, 1 or 2", found=kind)
        if kind == 0:
            made[:, begin:end] = np.arange(cursor, cursor + end - begin)
            cursor += end - begin
            continue
        while begin < end:
            item, high, wide = waiting[kind].popleft()  # the counts are equal, so there is one
            if high * wide > end - begin:
                raise UsageError(f"the tokens of {item} do not stand together", field=item, found=end - begin,
                                 expected=f"{high * wide} in {high} rows of {wide}")
            cell = np.arange(high * wide)
            made[:, begin:begin + high * wide] = cursor + np.stack((np.zeros_like(cell), cell // wide, cell % wide))
            begin += high * wide
            cursor += max(high, wide)
    return made, cursor - len(kinds)
