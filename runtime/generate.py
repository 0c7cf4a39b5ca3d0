"""The generation loop: prefill each row alone, then decode all rows together, sample, stop.

A device that works by itself is always given the next step before the host looks at the token of the last one, so that it never
waits; the price is one step too many where a stop token ends the answer.
"""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from glmc.errors import UsageError
from glmc.runtime.prompt import Prompt
from glmc.runtime.sample import Sampler, Sampling

if TYPE_CHECKING:
    from glmc.runtime.session import Model


@dataclass
class Generation:
    """One answer. finish_reason: "stop" (a stop token, not part of token_ids) or "length".

    timings, in seconds: "prefill" (all prompts of the batch; on a GPU until it has them), "first_token", "decode", "total".
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = "length"
    timings: dict[str, float] = field(default_factory=dict)
    prompt_tokens: int = 0
    seed: int = 0
    notes: list[str] = field(default_factory=list)
    """What was assumed of the prompt's images and videos, or left out, in words."""


class Stream:
    """Text pieces of a single prompt as they come; `.result` is the Generation once exhausted."""

    def __init__(self, steps: Iterator[tuple[int, str]]) -> None:
        self._steps = steps
        self.result: Generation | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            return next(self._steps)[1]
        except StopIteration as end:
            if end.value is not None:
                (self.result,) = end.value
            raise StopIteration from None


def generate(model: Model, prompts: list[Prompt], max_new_tokens: int, sampling: Sampling):
    """Yields (row, text piece): one for each token when it is chosen, "" where it completes no text, and in the end what was
    held back. Returns one Generation a prompt.

    Checks every request before any compiled code runs: rows, ids, and that max_new_tokens is at least 1. A row ends with
    "length" when it fills the artefact's max_len.
    """
    model.check_writes()
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise UsageError("at least one token must be asked for", field="max_new_tokens", found=max_new_tokens)
    model.check_rows(len(prompts))
    for row, prompt in enumerate(prompts):
        model.check_ids(prompt.ids, row)
    return _loop(model, prompts, max_new_tokens, sampling)


def _loop(model: Model, prompts: list[Prompt], max_new_tokens: int, sampling: Sampling):
    began = time.perf_counter()
    rows = len(prompts)
    holder = model.take_cache()
    sampler = Sampler(_agreed(model, sampling), rows, model.device.calling)
    answers = [Generation(prompt_tokens=len(prompt.ids), seed=sampler.seed, notes=list(prompt.notes)) for prompt in prompts]
    streams = [model.text.stream() if model.text.decodes else None for _ in prompts]
    stops = model.text.stop_ids
    room = [min(max_new_tokens, model.max_len - len(prompt.ids) + 1) for prompt in prompts]
    for row, prompt in enumerate(prompts):
        sampler.observe(row, prompt.ids)
    logits = torch.cat([model.prefill(row, prompt)[:, -1] for row, prompt in enumerate(prompts)])
    prefilled = time.perf_counter()
    lengths = torch.tensor([[len(prompt.ids)] for prompt in prompts])
    deltas = torch.tensor([[prompt.delta] for prompt in prompts]) if any(prompt.seen for prompt in prompts) else None
    alive = set(range(rows))
    first = None

    def step(tokens: torch.Tensor) -> torch.Tensor:
        # A finished row goes on in place until all are done: its last slot is written again, nobody reads the result.
        model.check_cache(holder)
        slots = lengths.clamp(max=model.max_len - 1)
        made = model.advance(tokens.unsqueeze(1), slots if deltas is None else torch.cat([slots, slots + deltas], 1))[:, -1]
        lengths.add_(1)
        return made

    while True:
        choice = sampler.choose(logits)
        # Not before the first token, which would wait until the step is recorded.
        ahead = model.device.ahead and first is not None and any(len(answers[row].token_ids) + 1 < room[row] for row in alive)
        if ahead:
            logits = step(choice.tokens)
        chosen = choice.ids()
        first = first or time.perf_counter()
        for row in sorted(alive):
            token, answer = chosen[row], answers[row]
            if token in stops:
                answer.finish_reason = "stop"
                alive.discard(row)
                continue
            answer.token_ids.append(token)
            stream = streams[row]
            yield row, "" if stream is None else stream.push(token)
            if len(answer.token_ids) >= room[row]:
                alive.discard(row)
        if not alive:
            break
        if not ahead:
            logits = step(choice.tokens)
    ended = time.perf_counter()
    for row, answer in enumerate(answers):
        stream = streams[row]
        if stream is not None:
            yield row, stream.flush()
            answer.text = model.text.decode(answer.token_ids)
        answer.timings = {"prefill": prefilled - began, "first_token": first - began, "decode": ended - first,
                          "total": ended - began}
    return answers


def _agreed(model: Model, sampling: Sampling) -> Sampling:
    """The sampling that all ranks do: where none was asked for, the seed is the main rank's."""
    if model.ranks.size == 1 or sampling.seed is not None or sampling.temperature == 0:
        return sampling
    drawn = model.ranks.main_then_broadcast("seed", lambda: {"seed": torch.tensor(secrets.randbits(63))})
    return dataclasses.replace(sampling, seed=int(drawn["seed"]))
