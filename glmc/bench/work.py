"""What is asked of everyone: prompts of random ids, so many tokens in, so many out, so many rows at once."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glmc.errors import RequestOutOfBounds, UsageError

SEED = 0
_MOST_ID = 10_000


@dataclass(frozen=True)
class Work:
    """One kind of request: `batch_size` rows of `input_len` tokens, each answered with `output_len` tokens."""

    input_len: int
    output_len: int
    batch_size: int = 1

    @property
    def name(self) -> str:
        """As llama-bench writes it: pp512+tg128, with the rows behind where there are several."""
        return f"pp{self.input_len}+tg{self.output_len}" + (f" b{self.batch_size}" if self.batch_size > 1 else "")

    def prompts(self, vocabulary: int) -> list[list[int]]:
        """Ids below `vocabulary` and 10,000, the same each time, other ones for each row."""
        draw = random.Random(f"{SEED} {self.input_len} {self.batch_size}")
        return [[draw.randrange(min(vocabulary, _MOST_ID)) for _ in range(self.input_len)] for _ in range(self.batch_size)]

    def to_json(self) -> dict[str, int]:
        return {"input_len": self.input_len, "output_len": self.output_len, "batch_size": self.batch_size}


def works(input_lens: Sequence[int], output_lens: Sequence[int], batch_sizes: Sequence[int], bounds: dict[str, Any],
          ) -> list[Work]:
    """Every combination. bounds: the artefact's. Raises UsageError, RequestOutOfBounds for what the artefact cannot take."""
    for name, values, least in (("input-len", input_lens, 1), ("output-len", output_lens, 2), ("batch-size", batch_sizes, 1)):
        if not values or min(values) < least:
            raise UsageError("a size is out of range", field=f"--{name}", expected=f"whole numbers from {least}",
                             found=", ".join(map(str, values)))
    longest = max(input_lens) + max(output_lens) - 1
    if longest > bounds["max_len"]:
        raise RequestOutOfBounds("a row would be longer than the artefact's bound", field="--input-len and --output-len",
                                 expected=f"at most max_len = {bounds['max_len']} tokens together", found=longest,
                                 hint="choose shorter ones, or compile with a larger --max-len")
    if max(batch_sizes) > bounds["max_batch"]:
        raise RequestOutOfBounds("the batch is outside the artefact's bound", field="--batch-size",
                                 expected=f"1 to max_batch = {bounds['max_batch']}", found=max(batch_sizes),
                                 hint="compile with a larger --max-batch")
    return [Work(p, n, b) for b, p, n in itertools.product(*map(dict.fromkeys, (batch_sizes, input_lens, output_lens)))]


def digest(source: str, asked: Sequence[Work]) -> str:
    """SHA-256 (hex) of what is asked and of whose weights: two reports with another one measured other work."""
    text = "\n".join([source, str(SEED), *(work.name for work in asked)])
    return hashlib.sha256(text.encode()).hexdigest()
