"""One request, answered by all ranks together: rank 0 reads the prompt and sends it, and each step begins with the same tokens.

Each rank chooses tokens for itself, by the seed that rank 0 drew, and the ranks compare what they chose before the next step:
what one of them computes differently ends the request and never reaches the answer. On a device whose tokens stay there, they
are compared once, with the whole answer.
"""

from __future__ import annotations

import secrets
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from glmc.artifact import Artifact
from glmc.errors import InternalError
from glmc.runtime.generate import Generation, Stream, generate
from glmc.runtime.prompt import Prompt, Seen
from glmc.runtime.sample import Sampling
from glmc.runtime.session import Model
from glmc.runtime.world import World

_SEEN = ("pixels", "grid", "positions", "media")


@dataclass(frozen=True)
class Request:
    """What `glmc run` was asked. A seed of None is drawn by rank 0."""

    prompt: str
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    raw: bool = False
    images: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()
    fps: float | None = None
    video_max_tokens: int | None = None

    @staticmethod
    def of(given: Namespace) -> Request:
        """What a worker's command line asks for."""
        return Request(**{one.name: getattr(given, one.name) for one in fields(Request) if hasattr(given, one.name)})


class Ranked(Model):
    """A model whose steps are stages of a world."""

    def __init__(self, artifact: Artifact, world: World, device: str | None = None, threads: int | None = None) -> None:
        super().__init__(artifact, device, threads, world)
        self.world, self._steps = world, 0

    def prefill(self, row: int, prompt: Prompt, every_row: bool = False) -> torch.Tensor:
        """As the model's, once all ranks hold the same prompt."""
        self.world.same(f"prefill {row}", torch.tensor(list(prompt.ids)))
        return super().prefill(row, prompt, every_row)

    def advance(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """As the model's, once all ranks have chosen the same tokens."""
        self._steps += 1
        stage = f"decode {self._steps}"
        if tokens.device.type == "cpu":
            self.world.same(stage, tokens, positions)
        else:
            self.world.enter(stage)
        return super().advance(tokens, positions)


def opened(artifact: Artifact, world: World, request: Request, device: str | None, threads: int) -> Ranked:
    """The artefact as this rank runs it. Raises UsageError, DamagedArtifact, IncompatibleArtifact, StorageError."""
    return Ranked(artifact, world, device, threads)


def answer(model: Ranked, request: Request, piece: Callable[[str], None]) -> Generation:
    """The answer, the same on all ranks; `piece` is given its text as it comes. Raises what any rank raised."""
    notes: list[str] = []
    sent = model.world.main_then_broadcast("prompt", lambda: _read(model, request, notes))
    seed = int(sent["seed"])
    seen = Seen(*(sent[name] for name in _SEEN)) if "pixels" in sent else None
    prompt = Prompt(sent["ids"].tolist(), seen, tuple(notes))
    sampling = Sampling(request.temperature, request.top_k, request.top_p, request.repetition_penalty, seed)
    stream = Stream(generate(model, [prompt], request.max_new_tokens, sampling))
    for text in stream:
        piece(text)
    if stream.result is None:
        raise InternalError("a request ended without an answer")
    model.world.same("answer", torch.tensor(stream.result.token_ids, dtype=torch.int64))
    return stream.result


def _read(model: Ranked, request: Request, notes: list[str]) -> Mapping[str, torch.Tensor]:
    """The prompt as tensors, on the rank that reads it; `notes` receives what was assumed of it."""
    prompt = model.prompt(request.prompt, request.raw, request.images, request.videos, request.fps, request.video_max_tokens)
    notes += prompt.notes
    seed = secrets.randbits(63) if request.seed is None else request.seed
    Sampling(request.temperature, request.top_k, request.top_p, request.repetition_penalty, seed)  # refuses before it is sent
    seen = {name: getattr(prompt.seen, name) for name in _SEEN} if prompt.seen else {}
    return {"ids": torch.tensor(list(prompt.ids), dtype=torch.int64), "seed": torch.tensor(seed), **seen}


def told(result: Generation) -> dict[str, Any]:
    """A generation as JSON."""
    return asdict(result)
