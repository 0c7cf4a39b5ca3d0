"""Running a program as one: every step of the model in one call into the native library, long prompts in pieces."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from glmc.artifact import Artifact
from glmc.errors import RequestOutOfBounds
from glmc.native.cache import Cache, caches_of
from glmc.native.compose import whole
from glmc.native.executor import Executor
from glmc.native.keep import Keep
from glmc.program import Program
from glmc.runtime.prompt import Placed
from glmc.runtime.ranks import Ranks

PIECE = 1024
"""Tokens of a prompt that are run at once: their activations stay near the cores, and memory does not grow with the prompt."""


class Whole:
    """The program on `threads` threads of the native library, and its cache. `own`: the width of this rank's logits."""

    def __init__(self, artifact: Artifact, program: Program, weights: dict[str, torch.Tensor], kept: dict[str, Keep],
                 threads: int, ranks: Ranks) -> None:
        manifest = artifact.manifest
        dims, bounds = manifest["dims"], manifest["bounds"]
        flat = whole(program)
        self.slots = bounds["max_len"]
        parts, dtype = caches_of(program.regions.values())
        self.cache = Cache(dims["layers"], bounds["max_batch"], bounds["max_len"], parts, getattr(torch, dtype))
        self.ranks, self.own = ranks, flat.widths[flat.values[program.logits]]
        self.gathers, self.vocabulary = flat.gathers, dims["vocabulary"]
        self.rows = torch.arange(bounds["max_batch"])
        self.executor = Executor(flat.items, flat.widths, weights, kept, self.cache,
                                 min(PIECE, max(bounds["max_len"], bounds["max_batch"])), threads, (), flat.sums,
                                 ranks.all_reduce)

    def extend(self, row: int, ids: Sequence[int], start: int, every_row: bool, placed: Placed | None = None) -> torch.Tensor:
        """Run new tokens `ids` of one cache row from position `start`; logits [1, len(ids) or 1, vocabulary].

        placed: where some of the tokens are images or frames, or lie in them; its features are float32.
        """
        _inside("the cache", "positions", (start, start + len(ids) - 1), self.slots)
        _inside("the cache", "row", (row,), len(self.rows))
        _inside("the vocabulary", "ids", ids, self.vocabulary)
        tokens, last = torch.tensor(ids, dtype=torch.int64), len(ids) - 1
        logits = torch.empty(len(ids) if every_row else 1, self.own)
        most = self.executor.tokens
        for at in range(0, len(ids), most):
            piece = tokens[at:at + most]
            positions = torch.arange(start + at, start + at + len(piece))
            ends = [last - at] if at + most > last else []
            which = torch.arange(len(piece)) if every_row else torch.tensor(ends, dtype=torch.int64)
            self.executor.run(piece, positions, torch.full_like(piece, row), which, logits[at:] if every_row else logits,
                              **(_seen(placed, at, at + len(piece)) if placed else {}))
        return self._whole(logits).unsqueeze(0)

    def advance(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """One token for each of the first rows: tokens int64 [B, 1], positions int64 [B, 1, 2 or 4] -> logits [B, 1, V].

        positions: each token's slot, and where it lies in an image or images came before it what it turns by, on all three axes
        or on each.
        """
        at = positions[:, 0].contiguous()
        turns = None if positions.shape[1] == 1 else positions[:, 1:].T.expand(3, -1).contiguous()
        _inside("the cache", "positions", at.tolist(), self.slots)
        _inside("the cache", "rows", (len(tokens) - 1,), len(self.rows))
        _inside("the vocabulary", "tokens", tokens.flatten().tolist(), self.vocabulary)
        rows = self.rows[:len(tokens)]
        logits = torch.empty(len(tokens), 1, self.own)
        self.executor.run(tokens.flatten().contiguous(), at, rows, rows, logits, turns)
        return self._whole(logits)

    def _whole(self, logits: torch.Tensor) -> torch.Tensor:
        return self.ranks.all_gather(logits, -1) if self.gathers else logits


def _seen(placed: Placed, begin: int, end: int) -> dict[str, torch.Tensor]:
    """Of tokens `begin` to `end` what the library is told besides. Raises RequestOutOfBounds."""
    told = {"turns": placed.positions[:, begin:end].contiguous()}
    if placed.media is None or placed.features is None:
        return told
    media = placed.media[begin:end].contiguous()
    _inside("the features", "media", [max(0, int(media.max()))], len(placed.features))
    return told | {"media": media, "features": placed.features}


def _inside(what: str, field: str, values: Sequence[int], size: int) -> None:
    """The library reads and writes where it is told to. Raises RequestOutOfBounds for a value that is not in [0, size)."""
    low, high = min(values), max(values)
    if low < 0 or high >= size:
        raise RequestOutOfBounds(f"a request lies outside {what}", field=field, expected=f"0 to {size - 1}",
                                 found=low if low < 0 else high)
