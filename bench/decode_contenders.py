"""Those who decode the same checkpoint: glmc, transformers in two ways, and AOTInductor on the unsplit graph.

Each offers `rate()`: from an empty cache it reads the prompt, then times `steps` decoding steps of one token each, and
returns tokens a second. `tokens` then holds the steps + 1 greedy tokens, the prompt's own answer first.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache, StoppingCriteria, StoppingCriteriaList
from transformers.utils import logging

import glmc
from glmc.published import Explicit


class Glmc:
    """The artefact through the public API, its sampler and its check for finite logits included."""

    def __init__(self, artifact: Path, prompt: list[int], steps: int) -> None:
        self.model, self.prompt, self.steps = glmc.load(artifact), prompt, steps
        self.tokens: list[int] = []

    def rate(self) -> float:
        answer = self.model.generate(self.prompt, max_new_tokens=self.steps + 1)
        self.tokens = answer.token_ids
        return self.steps / answer.timings["decode"]


class _Clock(StoppingCriteria):
    """Notes the time of every token; never stops."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


class TransformersGenerate:
    """model.generate, greedy, with its DynamicCache; the clock is read as each token is made."""

    def __init__(self, model: torch.nn.Module, prompt: list[int], steps: int) -> None:
        self.model, self.prompt, self.steps = model, torch.tensor([prompt]), steps
        self.tokens: list[int] = []

    def rate(self) -> float:
        clock, count = _Clock(), self.steps + 1
        out = self.model.generate(self.prompt, attention_mask=torch.ones_like(self.prompt), do_sample=False,
                                  max_new_tokens=count, min_new_tokens=count,
                                  stopping_criteria=StoppingCriteriaList([clock]))
        self.tokens = out[0, self.prompt.shape[1]:].tolist()
        return self.steps / (clock.times[-1] - clock.times[0])


class TransformersLoop:
    """The published model in a loop of our own: what `generate` does besides the model is left out."""

    def __init__(self, model: torch.nn.Module, prompt: list[int], steps: int) -> None:
        self.model, self.prompt, self.steps = model, torch.tensor([prompt]), steps
        self.tokens: list[int] = []

    @torch.no_grad()
    def rate(self) -> float:
        cache = DynamicCache(config=self.model.config)
        token = self.model(self.prompt, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
        self.tokens = [int(token)]
        began = time.perf_counter()
        for _ in range(self.steps):
            token = self.model(token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
            self.tokens.append(int(token))
        return self.steps / (time.perf_counter() - began)


class WholeAoti:
    """The published graph uncut, one token and a static cache, weights as its constants, compiled by AOTInductor.

    Attention is torch's own (transformers' `sdpa`). The prompt is read by the same module uncompiled, and not timed.
    freezing: let Inductor fold and repack the constants.
    """

    def __init__(self, model: torch.nn.Module, prompt: list[int], steps: int, slots: int, freezing: bool) -> None:
        config, dtype = model.config, model.dtype
        self.module = Explicit(model, [("keys", "values")] * config.num_hidden_layers)
        self.prompt, self.steps = prompt, steps
        self.tokens: list[int] = []
        shape = (1, slots, config.num_key_value_heads, config.head_dim)
        self.caches = [(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype))
                       for _ in range(config.num_hidden_layers)]
        self.slots = torch.arange(slots)
        one = torch.ones(1, 1, dtype=torch.int64)
        began = time.perf_counter()
        with torch.no_grad():
            exported = torch.export.export(self.module, (one, one.clone(), self.slots, self.caches), strict=False)
            self._scratch = tempfile.TemporaryDirectory(prefix="glmc-bench-aoti-")
            library = torch._inductor.aot_compile(
                exported.module(), (one, one.clone(), self.slots, self.caches),
                options={"freezing": freezing, "aot_inductor.output_path": f"{self._scratch.name}/whole.so"})
        self.compile_seconds = time.perf_counter() - began
        self._runner = torch._C._aoti.AOTIModelContainerRunnerCpu(library, 1)

    @torch.no_grad()
    def rate(self) -> float:
        flat = [tensor for pair in self.caches for tensor in pair]
        for tensor in flat:
            tensor.zero_()
        length = len(self.prompt)
        ids, positions = torch.tensor([self.prompt]), torch.arange(length).unsqueeze(0)
        token = self.module(ids, positions, self.slots, self.caches)[:, -1:].argmax(-1)
        self.tokens = [int(token)]
        began = time.perf_counter()
        for position in range(length, length + self.steps):
            (logits,) = self._runner.run([token, torch.tensor([[position]]), self.slots, *flat])
            token = logits[:, -1:].argmax(-1)
            self.tokens.append(int(token))
        return self.steps / (time.perf_counter() - began)


def published_model(checkpoint: Path) -> torch.nn.Module:
    """transformers' own class with the checkpoint's weights, in bfloat16, attention `sdpa`."""
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
