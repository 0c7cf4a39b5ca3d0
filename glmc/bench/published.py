"""transformers' own class as a contender, in a loop of our own: what its `generate` does besides the model is left out.

eager: as it comes, with a cache that grows. inductor: under torch.compile, with a static cache, as its makers advise.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from glmc.bench.sample import Sample, watch


class Published:
    """The published class with the checkpoint's weights, attention `sdpa`. Ids in, ids out."""

    def __init__(self, checkpoint: str, threads: int, device: str, dtype: str, compiled: bool) -> None:
        began = time.perf_counter()
        import torch
        import transformers

        imported = time.perf_counter()
        torch.set_num_threads(threads)
        transformers.utils.logging.disable_progress_bar()
        self.compiles, self.device, self._torch, self._kit = compiled, device, torch, transformers
        config = transformers.AutoConfig.from_pretrained(checkpoint)
        kind = getattr(transformers, config.architectures[0])
        loaded = kind.from_pretrained(checkpoint, dtype=getattr(torch, dtype), attn_implementation="sdpa")
        self.model = loaded.eval().to(self.device)
        self.text = self.model.config.get_text_config(decoder=True)
        self.vocabulary = self.text.vocab_size
        self.forward: Any = torch.compile(self.model) if compiled else self.model
        self.phases = {"import": imported - began, "weights": time.perf_counter() - imported}
        self.facts: dict[str, Any] = {"threads": threads, "device": self.device, "class": kind.__name__, "attention": "sdpa",
                                      "cache": "static" if compiled else "dynamic",
                                      "kernels": getattr(self.model.config, "_experts_implementation", None)}

    def request(self, prompts: list[list[int]], output_len: int) -> Sample:
        """Greedy, all rows at once: their prompts too, which are of one length."""
        with self._torch.no_grad():
            return watch(lambda: self._tokens(prompts, output_len), len(prompts))

    def _tokens(self, prompts: list[list[int]], output_len: int) -> Iterator[int]:
        length = len(prompts[0])
        cache = (self._kit.StaticCache(config=self.model.config, max_cache_len=length + output_len) if self.compiles
                 else self._kit.DynamicCache(config=self.model.config))
        given = self._torch.tensor(prompts, device=self.device)
        for _ in range(output_len):
            logits = self.forward(input_ids=given, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            given = logits[:, -1:].argmax(-1)
            given.tolist()  # waits for a device that works by itself
            yield from range(len(prompts))
