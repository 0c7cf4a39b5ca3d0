"""transformers as a peer: eager, and under torch.compile over a static cache.

    PYTHON bench/peers/peer_torch.py --model FOLDER --threads 2 [--variant eager|static|compile|autotune] [--experts NAME]

The published class in bfloat16, attention `sdpa`, only the last position's logits, as `generate` asks for. `eager` has a
DynamicCache; the others a StaticCache with as many slots as the request needs, rounded up to 64. `compile` is torch.compile
as it comes; `autotune` is max-autotune with freezing. Prompt and step are each compiled for their own sizes, before the clock.
Experts run by transformers' `grouped_mm` unless said otherwise.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from serve import Peer, options, serve
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache
from transformers.utils import logging

VARIANTS = ("eager", "static", "compile", "autotune")
EXPERTS = ("grouped_mm", "batched_mm", "eager")
ROUND = 64


def load(folder: Path, experts: str) -> torch.nn.Module:
    """The published class with the checkpoint's weights."""
    logging.disable_progress_bar()
    routed = "n_routed_experts" in json.loads((folder / "config.json").read_text())
    given = {"experts_implementation": experts} if routed else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa", **given).eval()


class Transformers(Peer):
    """One model in memory; compiled code and a cache for each size asked for."""

    def __init__(self, folder: Path, threads: int, variant: str, experts: str) -> None:
        torch.set_num_threads(threads)
        self.model, self.variant = load(folder, experts), variant
        self.vocabulary = self.model.config.vocab_size
        routed = f", experts {experts}" if hasattr(self.model.config, "n_routed_experts") else ""
        self.name = f"transformers {variant}{routed}"
        self.version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        self.cache: Any = None
        self.run_model = self.model.forward
        if variant == "autotune":
            torch._inductor.config.freezing = torch._inductor.config.max_autotune = True
        if variant in ("compile", "autotune"):
            # Each size is compiled for itself, and stays: the limits are for code that compiles without end.
            torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 1000
            self.run_model = torch.compile(self.model.forward, dynamic=False)

    def prepare(self, batch: int, prompt: int, steps: int) -> None:
        if self.variant == "eager":
            return
        slots = -(-(prompt + steps + 1) // ROUND) * ROUND
        config = self.model.config
        self.cache = StaticCache(config=config, max_cache_len=slots)
        # transformers marks the cache's addresses as static, which freezing takes for constants: the cache would be lost.
        with patch("torch._dynamo.mark_static_address"):
            self.cache.early_initialization(batch, config.num_key_value_heads, config.head_dim, torch.bfloat16, "cpu")

    def _next(self, ids: torch.Tensor) -> torch.Tensor:
        """The greedy token of each row, [batch, 1]."""
        with torch.no_grad():
            made = self.run_model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return made.logits[:, -1:].argmax(-1)

    def read(self, prompts: list[list[int]]) -> list[int]:
        if self.variant == "eager":
            self.cache = DynamicCache(config=self.model.config)
        else:
            self.cache.reset()
        return self._next(torch.tensor(prompts)).view(-1).tolist()

    def write(self, tokens: list[int], steps: int) -> list[list[int]]:
        ids, made = torch.tensor(tokens).view(-1, 1), []
        for _ in range(steps):
            ids = self._next(ids)
            made.append(ids)
        return torch.cat(made, 1).tolist()


def main() -> None:
    asked = options(__doc__, VARIANTS)
    asked.add_argument("--experts", choices=EXPERTS, default=EXPERTS[0])
    given = asked.parse_args()
    serve(lambda: Transformers(given.model, given.threads, given.variant, given.experts))


if __name__ == "__main__":
    main()
