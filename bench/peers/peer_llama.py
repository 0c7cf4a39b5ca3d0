"""llama.cpp as a peer, through the low-level bindings of llama-cpp-python: llama_decode with batches of our own.

    PYTHON bench/peers/peer_llama.py --model FILE.gguf --threads 2

Batch sizes are llama-bench's defaults (2048 logical, 512 physical). Variants: flash attention `on`, `off`, or `auto`,
which is llama-bench's default. Sequences have streams of their own in the cache, as llama-batched-bench has it by default.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import llama_cpp
import numpy as np
from serve import Peer, options, serve

BATCH, PHYSICAL = 2048, 512
FLASH = {"auto": -1, "off": 0, "on": 1}


@dataclass
class Chunk:
    """A llama_batch and numpy's views of its fields."""

    raw: llama_cpp.llama_batch
    token: np.ndarray
    position: np.ndarray
    wanted: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, positions: np.ndarray, wanted: np.ndarray) -> Chunk:
        """A batch whose i-th token is of sequence rows[i]; `wanted` marks those whose logits are asked for."""
        size = len(rows)
        raw = llama_cpp.llama_batch_init(size, 0, 1)
        raw.n_tokens = size
        made = cls(raw, *(np.ctypeslib.as_array(field, shape=(size,)) for field in (raw.token, raw.pos, raw.logits)))
        for index, row in enumerate(rows.tolist()):
            raw.n_seq_id[index], raw.seq_id[index][0] = 1, row
        made.position[:], made.wanted[:] = positions, wanted
        return made


class Llama(Peer):
    """One model; a context for the sizes of the last request."""

    def __init__(self, path: Path, threads: int, flash: str) -> None:
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise RuntimeError(f"llama.cpp refuses {path.name}")
        self.threads, self.flash = threads, flash
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        described = ctypes.create_string_buffer(128)
        llama_cpp.llama_model_desc(self.model, described, len(described))
        self.name = f"llama.cpp {path.stem} ({described.value.decode()}), flash attention {flash}"
        self.version = f"llama-cpp-python {llama_cpp.__version__}"
        self.context = None
        self.sizes = (0, 0, 0)

    def prepare(self, batch: int, prompt: int, steps: int) -> None:
        slots = -(-(prompt + steps + 1) // 256) * 256
        if (batch, prompt, slots) == self.sizes:
            return
        if self.context:
            self.sizes = (0, 0, 0)
            llama_cpp.llama_free(self.context)
            for chunk in (*self.chunks, self.one):
                llama_cpp.llama_batch_free(chunk.raw)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = slots * batch, batch
        params.n_batch, params.n_ubatch = BATCH, PHYSICAL
        params.n_threads = params.n_threads_batch = self.threads
        params.flash_attn_type, params.no_perf = FLASH[self.flash], True
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp makes no context for {batch} rows of {slots} slots")
        rows, positions = np.repeat(np.arange(batch), prompt), np.tile(np.arange(prompt), batch)
        pieces = [slice(at, at + BATCH) for at in range(0, batch * prompt, BATCH)]
        self.chunks = [Chunk.of(rows[p], positions[p], positions[p] == prompt - 1) for p in pieces]
        self.one = Chunk.of(np.arange(batch), np.full(batch, prompt), np.ones(batch))
        self.sizes = (batch, prompt, slots)

    def _decode(self, chunk: Chunk) -> list[int]:
        """Run a batch; the greedy tokens where logits were asked for, in order."""
        if code := llama_cpp.llama_decode(self.context, chunk.raw):
            raise RuntimeError(f"llama_decode answers {code}")
        count = int(np.count_nonzero(chunk.wanted))
        if not count:
            llama_cpp.llama_synchronize(self.context)
            return []
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.context), shape=(count, self.vocabulary))
        return logits.argmax(-1).tolist()

    def read(self, prompts: list[list[int]]) -> list[int]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)
        tokens, at, first = np.array(prompts, dtype=np.int32).reshape(-1), 0, []
        for chunk in self.chunks:
            chunk.token[:] = tokens[at:at + len(chunk.token)]
            at += len(chunk.token)
            first += self._decode(chunk)
        return first

    def write(self, tokens: list[int], steps: int) -> list[list[int]]:
        made: list[list[int]] = []
        self.one.position[:] = self.sizes[1]
        for _ in range(steps):
            self.one.token[:] = tokens
            tokens = self._decode(self.one)
            made.append(tokens)
            self.one.position += 1
        return [list(row) for row in zip(*made, strict=True)]


def main() -> None:
    given = options(__doc__, tuple(FLASH)).parse_args()
    serve(lambda: Llama(given.model, given.threads, given.variant))


if __name__ == "__main__":
    main()
