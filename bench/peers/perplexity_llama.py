"""Negative log likelihood of rows of tokens under a GGUF file, by llama.cpp.

    PYTHON bench/peers/perplexity_llama.py MODEL.gguf ROWS.json

ROWS.json: lists of ids, one sequence each. Prints {"nats": [the sum over each row's tokens but the first]}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import llama_cpp
import numpy as np
from peer_llama import Chunk, Llama


def nll(model: Llama, row: list[int]) -> float:
    """The sum over the row's tokens but the first, in nats."""
    count = len(row) - 1
    model.prepare(1, count, 0)
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(model.context), False)
    chunk = Chunk.of(np.zeros(count, dtype=int), np.arange(count), np.ones(count))
    chunk.token[:] = row[:-1]
    if code := llama_cpp.llama_decode(model.context, chunk.raw):
        raise RuntimeError(f"llama_decode answers {code}")
    found = np.ctypeslib.as_array(llama_cpp.llama_get_logits(model.context), shape=(count, model.vocabulary))
    logits = found.astype(np.float64)
    top = logits.max(-1)
    total = np.log(np.exp(logits - top[:, None]).sum(-1)) + top - logits[np.arange(count), row[1:]]
    llama_cpp.llama_batch_free(chunk.raw)
    return float(total.sum())


def main() -> None:
    model, rows = Llama(Path(sys.argv[1]), 2, "auto"), json.loads(Path(sys.argv[2]).read_text())
    print(json.dumps({"nats": [nll(model, row) for row in rows]}))


if __name__ == "__main__":
    main()
