"""AOTInductor on the unsplit graph as a peer: prompt and step each compiled for their own sizes, weights as constants.

    PYTHON bench/peers/peer_aoti.py --model FOLDER --threads 2 [--variant plain|freezing] [--experts NAME]

The graph is the published one with its cache as inputs (glmc.published, as in decode_contenders.py), attention `sdpa`, the
head cut to the last position. `freezing` lets Inductor fold and repack the constants. Runs in glmc's own environment; of
glmc only the boundary of the graph is used.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import transformers
from peer_torch import EXPERTS, ROUND, load
from serve import Peer, options, serve

from glmc.published import Explicit

VARIANTS = ("plain", "freezing")


@dataclass
class Sizes:
    """What one (batch, prompt, slots) needs: two libraries loaded and a cache."""

    prompt: object
    step: object
    slots: torch.Tensor
    caches: list[tuple[torch.Tensor, torch.Tensor]]


class WholeAoti(Peer):
    """One published model; compiled libraries for each size asked for."""

    def __init__(self, folder: Path, threads: int, variant: str, experts: str, scratch: Path) -> None:
        torch.set_num_threads(threads)
        model = load(folder, experts)
        self.config = model.config
        model.forward = partial(model.forward, logits_to_keep=1)
        self.module = Explicit(model, [("keys", "values")] * self.config.num_hidden_layers)
        self.freezing, self.scratch = variant == "freezing", scratch
        self.vocabulary = self.config.vocab_size
        routed = f", experts {experts}" if hasattr(self.config, "n_routed_experts") else ""
        self.name = f"AOTInductor {variant}{routed}"
        self.version = f"torch {torch.__version__}, transformers {transformers.__version__}"
        self.made: dict[tuple[int, int, int], Sizes] = {}

    def _library(self, batch: int, length: int, slots: torch.Tensor, caches: list) -> object:
        """Compile the graph for `length` new tokens a row and load it."""
        ids = torch.ones(batch, length, dtype=torch.int64)
        positions = torch.arange(length).repeat(batch, 1)
        file = self.scratch / f"{batch}-{length}-{len(slots)}.so"
        with torch.no_grad():
            exported = torch.export.export(self.module, (ids, positions, slots, caches), strict=False)
            library = torch._inductor.aot_compile(exported.module(), (ids, positions, slots, caches), options={
                "freezing": self.freezing, "aot_inductor.output_path": str(file)})
        return torch._C._aoti.AOTIModelContainerRunnerCpu(library, 1)

    def prepare(self, batch: int, prompt: int, steps: int) -> None:
        slots = -(-(prompt + steps + 1) // ROUND) * ROUND
        key = (batch, prompt, slots)
        if key not in self.made:
            shape = (batch, slots, self.config.num_key_value_heads, self.config.head_dim)
            caches = [(torch.zeros(shape, dtype=torch.bfloat16), torch.zeros(shape, dtype=torch.bfloat16))
                      for _ in range(self.config.num_hidden_layers)]
            numbers = torch.arange(slots)
            self.made[key] = Sizes(self._library(batch, prompt, numbers, caches), self._library(batch, 1, numbers, caches),
                                   numbers, caches)
        self.now, self.length = self.made[key], prompt
        self.flat = [tensor for pair in self.now.caches for tensor in pair]

    def _next(self, library: object, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The greedy token of each row, [batch, 1]."""
        (logits,) = library.run([ids, positions, self.now.slots, *self.flat])
        return logits[:, -1:].argmax(-1)

    @torch.no_grad()
    def read(self, prompts: list[list[int]]) -> list[int]:
        # Slots past a row's own are never seen, so what an earlier run left there does no harm.
        ids = torch.tensor(prompts)
        return self._next(self.now.prompt, ids, torch.arange(self.length).repeat(len(ids), 1)).view(-1).tolist()

    @torch.no_grad()
    def write(self, tokens: list[int], steps: int) -> list[list[int]]:
        ids, made = torch.tensor(tokens).view(-1, 1), []
        for position in range(self.length, self.length + steps):
            ids = self._next(self.now.step, ids, torch.full(ids.shape, position))
            made.append(ids)
        return torch.cat(made, 1).tolist()


def main() -> None:
    asked = options(__doc__, VARIANTS)
    asked.add_argument("--experts", choices=EXPERTS, default=EXPERTS[0])
    given = asked.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="glmc-bench-aoti-"))
    try:
        serve(lambda: WholeAoti(given.model, given.threads, given.variant, given.experts, scratch))
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
