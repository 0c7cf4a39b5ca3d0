"""Those who decode the same shape on a GPU: the artefact, transformers eager, and transformers compiled.

Each offers `rate()`: from an empty cache it reads prompts of one length, one a row, then times `steps` decoding steps of one
token a row, and returns tokens a second of all rows. `tokens` then holds the first row's steps + 1 greedy tokens.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from checkpoints import fill
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, StaticCache
from transformers.utils import logging


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


class Glmc:
    """The artefact through the public API, sampler and check for finite logits included."""

    def __init__(self, model: Any, prompts: list[list[int]], steps: int) -> None:
        self.model, self.prompts, self.steps = model, prompts, steps
        self.tokens: list[int] = []

    def rate(self) -> float:
        answers = self.model.generate_batch(self.prompts, max_new_tokens=self.steps + 1)
        self.tokens = answers[0].token_ids
        return self.steps * len(answers) / answers[0].timings["decode"]


class Eager:
    """The published model in a loop of our own with its growing cache."""

    def __init__(self, model: torch.nn.Module, prompts: list[list[int]], steps: int) -> None:
        self.model, self.prompt, self.steps = model, torch.tensor(prompts, device=model.device), steps
        self.tokens: list[int] = []

    @torch.no_grad()
    def rate(self) -> float:
        cache = DynamicCache(config=self.model.config)
        token = self.model(self.prompt, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1:].argmax(-1)
        tokens = [token]
        wait(self.prompt.device)
        began = time.perf_counter()
        for _ in range(self.steps):
            token = self.model(token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
            tokens.append(token)
        wait(self.prompt.device)
        seconds = time.perf_counter() - began
        self.tokens = torch.cat(tokens, 1)[0].tolist()
        return self.steps * len(self.prompt) / seconds


class Compiled:
    """The published model under torch.compile(mode="reduce-overhead"), one graph, with a static cache of `slots` slots.

    The prompt is read by the model uncompiled, and not timed.
    """

    def __init__(self, model: torch.nn.Module, prompts: list[list[int]], steps: int, slots: int) -> None:
        self.model, self.prompt, self.steps = model, torch.tensor(prompts, device=model.device), steps
        self.cache = StaticCache(config=model.config, max_cache_len=slots)
        self.step = torch.compile(self._step, mode="reduce-overhead", fullgraph=True)
        self.tokens: list[int] = []

    def _step(self, token: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        return self.model(token, past_key_values=self.cache, position_ids=at, cache_position=at[0], use_cache=True,
                          ).logits[:, -1:].argmax(-1)

    @torch.no_grad()
    def rate(self) -> float:
        rows, length = self.prompt.shape
        self.cache.reset()
        at = torch.arange(length, device=self.prompt.device).expand(rows, length)
        token = self.model(self.prompt, past_key_values=self.cache, position_ids=at, cache_position=at[0], use_cache=True,
                           logits_to_keep=1).logits[:, -1:].argmax(-1)
        places = [torch.full((rows, 1), length + n, device=self.prompt.device) for n in range(self.steps)]
        tokens = [token]
        wait(self.prompt.device)
        began = time.perf_counter()
        for place in places:
            token = self.step(token, place).clone()
            tokens.append(token)
        wait(self.prompt.device)
        seconds = time.perf_counter() - began
        self.tokens = torch.cat(tokens, 1)[0].tolist()
        return self.steps * rows / seconds


def published_model(checkpoint: Path) -> torch.nn.Module:
    """transformers' own class with the checkpoint's weights on the GPU, in bfloat16, attention `sdpa`."""
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16, attn_implementation="sdpa",
                                                device_map={"": 0}).eval()


def random_model(config: dict[str, Any], device: str = "cuda") -> torch.nn.Module:
    """transformers' own class of a configuration in bfloat16, its weights drawn on the device: for a checkpoint that it cannot
    read, its shape alone."""
    fields = {name: value for name, value in config.items() if name not in ("torch_dtype", "quantization_config")}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields), dtype=torch.bfloat16,
                                                 attn_implementation="sdpa").eval()
    model.to_empty(device=device)
    draw = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            fill(name, tensor, draw)
    for module in model.modules():
        if hasattr(module, "inv_freq"):  # no weight, so not in the state
            made = type(module)(model.config)
            module.inv_freq = made.inv_freq.to(device)
    return model
