"""A loaded artefact: open and check, place weights, allocate the cache, run forms, generate."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from glmc.artifact import Artifact
from glmc.errors import RequestOutOfBounds, UsageError
from glmc.program import MAIN
from glmc.runtime.ask_media import Wishes
from glmc.runtime.asked import Asked, prompt_of
from glmc.runtime.by_region import ByRegion, open_code
from glmc.runtime.generate import Generation, Stream, generate
from glmc.runtime.media.settings import Settings
from glmc.runtime.opened import Opened
from glmc.runtime.prompt import Placed, Prompt
from glmc.runtime.ranks import Ranks
from glmc.runtime.sample import Sampling
from glmc.runtime.steps import check_weights
from glmc.runtime.text import Text
from glmc.runtime.vision import CODES, STAGE, Vision
from glmc.runtime.whole import Whole

if TYPE_CHECKING:
    from glmc.runtime.engines.onnx import Session
    from glmc.runtime.image.pipeline import ImageModel


def load(path: Any, threads: int | None = None, device: str | None = None, ranks: Ranks | None = None) -> Model | ImageModel:
    """Open the artefact folder `path` and make it ready to generate text, or pictures.

    threads: CPU threads, at most the cores that this process may use; None takes them all.
    device: None is the target's own; see glmc.runtime.device. An artefact of the native engine sets torch's own threads to one.
    ranks: those that run the text model together, each with its share of the weights; all must ask for the same.
    Raises UsageError (device, threads, ranks), DamagedArtifact, IncompatibleArtifact, StorageError.
    """
    artifact = Artifact.open(Path(path))
    if artifact.manifest["dims"].get("pictures") is None:
        return Model(artifact, device, threads, ranks)
    from glmc.runtime.image.pipeline import ImageModel  # which is made of a Model

    return ImageModel(artifact, device, threads)


class Model:
    """A model that generates. `timings` holds the seconds of each phase of opening."""

    def __init__(self, artifact: Artifact, device: str | None = None, threads: int | None = None, ranks: Ranks | None = None,
                 opened: Opened | None = None) -> None:
        """opened: the artefact, where it is opened already; the others then say nothing."""
        opened = opened or Opened(artifact, device, threads, ranks)
        self.opened, self.artifact, self.ranks, self.threads = opened, artifact, opened.ranks, opened.threads
        self.dims, self.bounds = artifact.manifest["dims"], artifact.manifest["bounds"]
        self.programs, self.kept, self.weights, self.device = opened.programs, opened.kept, opened.weights, opened.device
        self.program = self.programs[MAIN]
        began = time.perf_counter()
        self.runner: Whole | Session | ByRegion = self._whole() if opened.whole else self.by_region()
        tower = self.programs.get(STAGE)
        self.vision = Vision(artifact, tower, self.weights, self.kept, self.device, self.threads) if tower else None
        self._holder = 0
        self.text = Text.open(self.file)
        self.media = Settings.open(self.file) if self.vision else None
        self.timings = {**opened.timings, "place": time.perf_counter() - began}

    def file(self, name: str) -> bytes | None:
        return self.artifact.read(name) if name in self.artifact.files else None

    def by_region(self) -> ByRegion:
        """The program as regions that run one by one, with a cache of their own."""
        calls = self.opened.calls or open_code(self.artifact, self.program, self.max_batch, self.device)
        held = self.weights.keys() >= self.program.weights().keys()  # ONNX Runtime reads those of the text by itself
        weights = self.weights if held else self.artifact.load_weights(self.threads)
        return ByRegion(self.artifact, self.program, weights, calls, self.device, self.kept, self.ranks)

    def _whole(self) -> Whole | Session:
        if self.artifact.manifest["engine"] == "onnx":
            from glmc.runtime.engines.onnx import Session  # the others run without ONNX Runtime

            return Session(self.artifact, self.threads)
        check_weights(self.program, self.weights, self.kept)
        return Whole(self.artifact, self.program, self.weights, self.kept, self.threads, self.ranks)

    @property
    def max_len(self) -> int:
        """The most tokens a row may hold, prompt and answer together."""
        return self.bounds["max_len"]

    @property
    def max_batch(self) -> int:
        """The most rows at once."""
        return self.bounds["max_batch"]

    def check_writes(self) -> None:
        """Raises UsageError for a model whose answers are no text but the tokens of an image."""
        if CODES in self.programs:
            raise UsageError("this model makes the tokens of an image and writes no text", field="prompt",
                             found=self.artifact.manifest["family"],
                             hint="glmc.runtime.image.prior.prior(model, prompt, height, width) makes them")

    def check_ids(self, ids: Sequence[int], row: int = 0) -> None:
        """Refuse, before any compiled code runs, ids that the artefact cannot take. Raises RequestOutOfBounds."""
        if not len(ids):
            raise RequestOutOfBounds("the prompt is empty", field=f"prompt[{row}]", expected="at least one token")
        if len(ids) > self.max_len:
            raise RequestOutOfBounds("the prompt is longer than the artefact's bound", field=f"prompt[{row}]",
                                     expected=f"at most max_len = {self.max_len} tokens", found=len(ids),
                                     hint="compile with a larger --max-len")
        wrong = [i for i in ids if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < self.dims["vocabulary"]]
        if wrong:
            raise RequestOutOfBounds("a token id is outside the vocabulary", field=f"prompt[{row}]",
                                     expected=f"whole numbers from 0 to {self.dims['vocabulary'] - 1}", found=str(wrong[0]))

    def check_rows(self, rows: int) -> None:
        """Raises RequestOutOfBounds for more rows than the artefact was compiled for."""
        if not 1 <= rows <= self.max_batch:
            raise RequestOutOfBounds("the batch is outside the artefact's bound", field="batch",
                                     expected=f"1 to max_batch = {self.max_batch}", found=rows,
                                     hint="compile with a larger --max-batch")

    def take_cache(self) -> int:
        """Begin a use of the cache; a number for `check_cache`. The cache is one: what was in it belongs to nobody now."""
        self._holder += 1
        return self._holder

    def check_cache(self, holder: int) -> None:
        """Raise UsageError when another use of the cache began after the one that `holder` names."""
        if holder != self._holder:
            raise UsageError("another generation began on this model and took its cache", field="stream",
                             hint="finish one generation before the next, put the prompts into one batch, or load twice")

    def prefill(self, row: int, prompt: Prompt, every_row: bool = False) -> torch.Tensor:
        """Run a prompt in an empty cache row, its images through the vision tower first; logits as by `extend`."""
        if prompt.seen is None:
            return self.extend(row, prompt.ids, 0, every_row)
        if self.vision is None:
            raise RequestOutOfBounds("this model takes no images", field=f"prompt[{row}]",
                                     found=self.artifact.manifest["family"])
        prompt.check(row)
        features = self.vision(prompt.seen.pixels, prompt.seen.grid)
        return self.extend(row, prompt.ids, 0, every_row, Placed(prompt.seen.positions, prompt.seen.media, features))

    def extend(self, row: int, ids: Sequence[int], start: int, every_row: bool = False, placed: Placed | None = None,
               ) -> torch.Tensor:
        """Run new tokens `ids` of one cache row from position `start`; logits [1, len(ids) or 1, vocabulary], where `ahead` on
        the device. placed: where some of the tokens are images or frames."""
        return self.runner.extend(row, ids, start, every_row, placed)

    def advance(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """One token for each of the first rows: tokens, positions int64 [B, 1] -> logits [B, 1, vocabulary], as by `extend`.

        positions: on the host, each token's slot, which is its position too; where images came before, [B, 2]: slot, position.
        The logits are valid until the next call.
        """
        return self.runner.advance(tokens, positions)

    def logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        """LongTensor [B, S] without padding -> float32 [B, S, vocabulary]. Uses cache row 0; for checking."""
        if input_ids.dim() != 2:
            raise RequestOutOfBounds("input_ids must be [B, S]", field="input_ids", found=list(input_ids.shape))
        rows = []
        self.take_cache()
        for number, ids in enumerate(input_ids.tolist()):
            self.check_ids(ids, number)
            rows.append(self.extend(0, ids, 0, every_row=True).float().cpu())
        return torch.cat(rows)

    def prompt(self, asked: Asked, raw: bool = False, images: Sequence[Any] = (), videos: Sequence[Any] = (),
               fps: float | None = None, video_max_tokens: int | None = None, stamps: str = "transformers") -> Prompt:
        """What is asked as a prompt: text (as one user message, or as it is with `raw`), messages, or ids as they are.

        images, videos: paths, bytes, PIL images, arrays uint8 [H, W, 3] and clips of them; a video may be a pair with its
        metadata. They come before the text of one message, or where messages speak of them; messages may hold them too.
        fps: frames to take a second, None for the checkpoint's. video_max_tokens: the most that a video may become; a longer
        one is thinned. stamps: "vllm" writes a video's times as vLLM does.
        Raises UsageError, MediaError, RequestOutOfBounds, all before the model runs.
        """
        wishes = Wishes(fps, video_max_tokens, stamps)
        return prompt_of(asked, self.text, self.media, self.max_len, raw, images, videos, wishes)

    def generate(self, prompt: Asked, max_new_tokens: int = 64, temperature: float = 0.0, top_k: int = 0,
                 top_p: float = 1.0, repetition_penalty: float = 1.0, seed: int | None = None, raw: bool = False,
                 stream: bool = False, images: Sequence[Any] = (), videos: Sequence[Any] = (), fps: float | None = None,
                 video_max_tokens: int | None = None) -> Generation | Stream:
        """Generate from one prompt; greedy unless a temperature is given.

        images, videos, fps, video_max_tokens: see `prompt`. stream: return an iterator of text pieces, whose `.result` is the
        Generation when it is exhausted.
        Raises RequestOutOfBounds, UsageError, NumericError.
        """
        made = self.prompt(prompt, raw, images, videos, fps, video_max_tokens)
        if stream:
            sampling = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
            return Stream(generate(self, [made], max_new_tokens, sampling))
        return self.generate_batch([made], max_new_tokens, temperature, top_k, top_p, repetition_penalty, seed, raw)[0]

    def generate_batch(self, prompts: Sequence[Asked], max_new_tokens: int = 64, temperature: float = 0.0,
                       top_k: int = 0, top_p: float = 1.0, repetition_penalty: float = 1.0, seed: int | None = None,
                       raw: bool = False) -> list[Generation]:
        """Generate from several prompts of any lengths at once; each gives the tokens it would give alone."""
        sampling = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
        steps: Iterator = generate(self, [self.prompt(p, raw) for p in prompts], max_new_tokens, sampling)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value

    def as_transformers(self):
        """A drop-in for transformers' `generate()`: see `glmc.runtime.as_transformers`."""
        from glmc.runtime.as_transformers import wrap

        self.check_writes()
        return wrap(self)
