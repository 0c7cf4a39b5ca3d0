"""A picture from a prompt: tokens, glyphs, condition images, steps of the diffusion transformer, pixels.

Everything runs from the artefact. Conditional and unconditional calls are made one after another, a picture at a time.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from glmc.artifact import Artifact
from glmc.errors import IncompatibleArtifact, NumericError, RequestOutOfBounds, UsageError
from glmc.program import PICTURE_MODES
from glmc.runtime.by_region import ANY, stage_of
from glmc.runtime.image import glyphs
from glmc.runtime.image import prior as first
from glmc.runtime.image.denoise import Denoiser
from glmc.runtime.image.kv import Past
from glmc.runtime.image.picture import Picture, image_of, pixels_of
from glmc.runtime.image.prior import Prior
from glmc.runtime.image.schedule import advanced, check_steps, schedule
from glmc.runtime.image.sharing import Sharing
from glmc.runtime.image.sizes import PATCH, SIDE, target_grids
from glmc.runtime.media.image import image_header
from glmc.runtime.opened import Opened
from glmc.runtime.ranks import MAIN, Alone, Ranks
from glmc.runtime.session import Model
from glmc.runtime.threads import torch_threads
from glmc.runtime.transfer import to_device

GUIDANCE = 100.0
"""The most that the unconditional noise may be left behind."""
_EVERYWHERE = {name for name, mode in PICTURE_MODES.items() if not mode.startswith("main_rank")}
"""The parts that every rank runs, and whose weights it therefore loads."""
_AFTER = {"glyph", "dit", "vae_decode", "vae_encode"}
"""The parts that run one after another once there are tokens."""


class ImageModel:
    """An artefact that makes pictures. `model` is its autoregressive half, which rank MAIN alone has.

    ranks: those that make every picture together: rank MAIN draws tokens and noise and makes the pixels, all denoise. None for
    one alone. sharing: how they denoise; None has all of them share a picture's rows.
    """

    def __init__(self, artifact: Artifact, device: str | None = None, threads: int | None = None, ranks: Ranks | None = None,
                 sharing: Sharing | None = None) -> None:
        self.ranks: Ranks = ranks or Alone()
        main = self.ranks.rank == MAIN
        opened = Opened(artifact, device, threads, parts=None if main else _EVERYWHERE)
        said = {name: program.mode for name, program in opened.programs.items()}
        if said != PICTURE_MODES:
            raise IncompatibleArtifact("the parts run over ranks in other ways than this version has them", field="mode",
                                       file=artifact.folder, expected=PICTURE_MODES, found=said,
                                       hint="compile it again with this version")
        self.model = Model(artifact, opened=opened) if main else None
        self.artifact, self.device, self.timings = artifact, opened.device, (self.model or opened).timings
        self.sizes = artifact.manifest["dims"]["pictures"]
        self.dtype = getattr(torch, artifact.manifest["dtype"])
        self.sharing = sharing or Sharing(self.ranks)
        self.threads = opened.threads if opened.native else None
        self._stages = {name: stage_of(artifact, program, opened.weights, opened.kept, self.device)
                        for name, program in opened.programs.items() if name in _AFTER and (main or name in _EVERYWHERE)}
        self.denoiser = Denoiser(self._stages["dit"], self.dtype, self.device, self.sharing.rows)

    def generate(self, prompt: str, height: int | None = None, width: int | None = None, images: Sequence[Any] = (),
                 steps: int = 50, guidance: float = 1.5, seed: int | None = None, prior: Prior | None = None,
                 noise: torch.Tensor | None = None) -> Picture:
        """A picture of height x width pixels, multiples of 32; without them those of the first condition image, cut to such.

        images: what it is made from, if anything: paths, bytes, PIL images, arrays uint8 [H, W, 3]. steps: of the diffusion
        transformer. guidance: 1 asks it once a step, more asks it without the prompt too and moves so far away from that.
        seed: of tokens and noise, None for a fresh one. prior: tokens that are there already. noise: [1, C, H, W] of latents,
        instead of what the seed gives.
        Raises UsageError, MediaError, RequestOutOfBounds, all before anything runs; NumericError, RankError.
        """
        height, width = self.size(prompt, height, width, images)
        self.check(height, width, images, steps, guidance, prior, noise)
        chosen = secrets.randbits(63) if seed is None else _seed(seed)
        timings: dict[str, float] = {}
        with _timed(timings, "prior"):
            drawn = self.ranks.main_then_broadcast("prior", lambda: self._drawn(
                prior or self.tokens(prompt, height, width, images, chosen), noise, height, width, chosen))
            tokens, chosen = _tokens(drawn), int(drawn["chosen"])
        with torch_threads(self.threads):
            self.ranks.same("glyphs", *drawn.values())
            with _timed(timings, "glyphs"):
                texts = [self.glyphs(prompt), self.glyphs("")][:1 + (guidance > 1)]
            past = Past()
            with _timed(timings, "condition"):
                shown = [pixels_of(image, PATCH * own.shape[0], PATCH * own.shape[1])
                         for image, own in zip(images, tokens.sources, strict=True)]
                self.ranks.same("condition", *(text.cpu() for text in texts), *shown)
                for pixels, own in zip(shown, tokens.sources, strict=True):
                    self.condition(past, pixels, own)
            with _timed(timings, "denoise"):
                latents = self.denoise(drawn["noise"], texts, tokens.target, steps, guidance, past)
            self.ranks.same("pixels", latents.cpu())
            with _timed(timings, "decode"):
                image = image_of(self.pixels(latents)) if self.ranks.rank == MAIN else None
        return Picture(image, latents.cpu(), tokens, chosen, timings)

    def _drawn(self, tokens: Prior, noise: torch.Tensor | None, height: int, width: int, seed: int) -> dict[str, torch.Tensor]:
        """What rank MAIN tells the others: all that is drawn at random, and what it was drawn with."""
        sources = {f"source {number}": source for number, source in enumerate(tokens.sources)}
        return {"target": tokens.target, **sources, "token_ids": tokens.token_ids, "seed": torch.tensor(tokens.seed),
                "chosen": torch.tensor(seed), "noise": self._latents(height, width, seed) if noise is None else noise}

    def size(self, prompt: Any, height: int | None, width: int | None, images: Sequence[Any]) -> tuple[int, int]:
        """Height and width of the picture that is asked for. Raises UsageError, MediaError, RequestOutOfBounds."""
        if not isinstance(prompt, str):
            raise UsageError("a picture is asked for with text", field="prompt", found=type(prompt).__name__)
        headers = [image_header(image) for image in images]
        for name, given in (("height", height), ("width", width)):
            if given is None and not headers:
                raise UsageError("a picture needs a size, or an image that has one", field=name,
                                 expected=f"a multiple of {SIDE}")
        found = [(getattr(headers[0], name) // SIDE * SIDE or SIDE) if given is None else given
                 for name, given in (("height", height), ("width", width))]
        return found[0], found[1]

    def check(self, height: int, width: int, images: Sequence[Any], steps: int, guidance: float, prior: Prior | None,
              noise: torch.Tensor | None) -> None:
        """Refuse what cannot be made. Raises UsageError, RequestOutOfBounds."""
        target_grids(height, width)
        self.sharing.check(height // PATCH, guidance)
        check_steps(self.sizes["schedule"], steps)
        if isinstance(guidance, bool) or not isinstance(guidance, int | float) or not 1 <= guidance <= GUIDANCE:
            raise RequestOutOfBounds("the guidance is out of range", field="guidance", found=guidance,
                                     expected=f"a number from 1, which is none, to {GUIDANCE:g}")
        shape = [1, self.sizes["channels"], height // self.sizes["scale"], width // self.sizes["scale"]]
        if noise is not None and (list(noise.shape) != shape or not noise.is_floating_point()):
            raise UsageError("the noise does not fit the picture", field="noise", expected=f"floats {shape}",
                             found=f"{noise.dtype} {list(noise.shape)}")
        if prior is not None:
            self._check_prior(prior, height // PATCH, width // PATCH, len(images))

    def _check_prior(self, prior: Prior, rows: int, columns: int, images: int) -> None:
        if list(prior.target.shape) != [rows, columns] or len(prior.sources) != images:
            raise UsageError("the tokens do not fit the picture and its images", field="prior",
                             expected=f"[{rows}, {columns}] and {images} of images",
                             found=f"{list(prior.target.shape)} and {len(prior.sources)}")
        codes = self.sizes["dit"]["vocabulary"]
        for tokens in (prior.target, *prior.sources):
            if tokens.dim() != 2 or tokens.dtype != torch.int64 or not ((0 <= tokens) & (tokens < codes)).all():
                raise RequestOutOfBounds("tokens of an image are outside its codebook", field="prior",
                                         expected=f"int64 [h, w] from 0 to {codes - 1}",
                                         found=f"{tokens.dtype} {list(tokens.shape)}")

    def tokens(self, prompt: str, height: int, width: int, images: Sequence[Any], seed: int) -> Prior:
        """The tokens of a picture, from the autoregressive half. Raises what `glmc.runtime.image.prior.prior` raises, and
        UsageError on a rank that does not have that half."""
        if self.model is None:
            raise UsageError("only one rank draws tokens", field="rank", expected=MAIN, found=self.ranks.rank)
        sampling = replace(first.published_sampling(self.model), seed=seed)
        return first.prior(self.model, prompt, height, width, images, sampling)

    def glyphs(self, prompt: str) -> torch.Tensor:
        """[1, T, width], what the prompt wants written; of the longest of several texts every token, of others theirs."""
        ids, mask = glyphs.batch(prompt, self.sizes["extra"])
        return self._run("glyph", ids=ids, mask=mask)[to_device(mask.bool(), self.device.torch)].unsqueeze(0)

    def condition(self, past: Past, pixels: torch.Tensor, tokens: torch.Tensor) -> None:
        """Keep the keys and values of an image, [1, 3, 16 h, 16 w] from -1 to 1, with tokens int64 [h, w]."""
        mean, deviation = self._statistics()
        latents = (self._run("vae_encode", pixels=pixels.to(self.dtype)) - mean) / deviation
        past.mode = "write"
        self.denoiser(latents, latents.new_zeros(1, 0, self.sizes["width"]), tokens, False, 0.0, past)

    def denoise(self, latents: torch.Tensor, texts: Sequence[torch.Tensor], tokens: torch.Tensor, steps: int, guidance: float,
                past: Past) -> torch.Tensor:
        """From noise to latents. texts: with the prompt, and without it where there is guidance. Raises NumericError."""
        latents = to_device(latents, self.device.torch)
        times, sigmas = schedule(self.sizes["schedule"], steps, tokens.numel())

        def noise_in(latents: torch.Tensor, at: float, which: int) -> torch.Tensor:
            past.mode = "skip" if which else "read"
            return self.denoiser(latents, texts[which], tokens, which == 1, at - 1, past)

        for number, at in enumerate(times.tolist()):
            self.sharing.begin(f"denoise {number + 1}", latents)
            noise, *without = self.sharing.calls(partial(noise_in, latents, at), len(texts))
            if without:
                noise = without[0] + guidance * (noise - without[0])
            latents = advanced(latents, noise, sigmas[number], sigmas[number + 1])
        if not latents.isfinite().all():
            raise NumericError("the latents of the picture are not finite", field="latents", found="inf or nan")
        return latents

    def pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """[1, 3, H, W] of latents, from -1 to 1 or a little more."""
        mean, deviation = self._statistics()
        return self._run("vae_decode", latents=to_device(latents, self.device.torch).to(self.dtype) * deviation + mean)

    def _run(self, stage: str, **given: torch.Tensor) -> torch.Tensor:
        named = {f"input:{name}": to_device(tensor.contiguous(), self.device.torch) for name, tensor in given.items()}
        with torch.no_grad():
            return self._stages[stage].run(ANY, named, True)

    def _statistics(self) -> list[torch.Tensor]:
        """Mean and deviation of latents by channel, [1, C, 1, 1]."""
        return [to_device(torch.tensor(self.sizes[name]).view(1, -1, 1, 1).to(self.dtype), self.device.torch)
                for name in ("mean", "deviation")]

    def _latents(self, height: int, width: int, seed: int) -> torch.Tensor:
        shape = (1, self.sizes["channels"], height // self.sizes["scale"], width // self.sizes["scale"])
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=self.dtype)


def _tokens(drawn: dict[str, torch.Tensor]) -> Prior:
    """The tokens in what `ImageModel._drawn` told."""
    sources = tuple(drawn[f"source {number}"] for number in range(sum(name.startswith("source ") for name in drawn)))
    return Prior(drawn["target"], sources, drawn["token_ids"], int(drawn["seed"]))


def _seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 63:
        raise UsageError("this is no seed", field="seed", expected="a whole number from 0 to 2^63 - 1", found=seed)
    return seed


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    timings[stage] = time.perf_counter() - began
