"""GLM-Image's first stage: from a prompt, a size and condition images to a token for each patch of the image.

The number of tokens is exact. Every token of a grid is one of the image codebook: the mark of the end and other ids of the head
are no choice there, so nothing ends a grid early or stands in it. The one token behind the last grid is any that the head has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from glmc.errors import IncompatibleArtifact
from glmc.runtime.image.ask import Asked, asked, pixels
from glmc.runtime.image.codes import tokens_of
from glmc.runtime.image.settings import Settings
from glmc.runtime.image.sizes import extracted, upsampled
from glmc.runtime.prompt import Placed
from glmc.runtime.sample import Sampler, Sampling
from glmc.runtime.session import Model
from glmc.runtime.vision import CODES


@dataclass(frozen=True)
class Prior:
    """target: int64 [h, w], a token for each patch of the diffusion transformer. sources: int64 [h_i, w_i] of each condition
    image. token_ids: int64 [n], everything that was generated. seed: what the tokens were drawn with."""

    target: torch.Tensor
    sources: tuple[torch.Tensor, ...]
    token_ids: torch.Tensor
    seed: int


def published_sampling(model: Model) -> Sampling:
    """How the checkpoint's own files have tokens drawn. Raises what `prior` raises for such a model."""
    return _settings(model).sampling


def prior(model: Model, prompt: str, height: int, width: int, images: Sequence[Any] = (), sampling: Sampling | None = None,
          ) -> Prior:
    """The tokens of an image of height x width pixels, multiples of 32.

    images: what it is made from, if anything: paths, bytes, PIL images, arrays uint8 [H, W, 3]; none at all is text-to-image.
    sampling: None for the checkpoint's own with a fresh seed; the same seed gives the same tokens.
    Raises UsageError (no such model, size, prompt), MediaError, RequestOutOfBounds (too many tokens), all before the model
    runs; NumericError.
    """
    settings = _settings(model)
    one = asked(settings, model.text, prompt, height, width, images, model.max_len)
    seen = pixels(settings.sizing, images, one.sources) if one.sources else torch.empty(0)
    sources = tokens_of(model, seen, one.sources)
    ids = torch.tensor(one.ids)
    if sources:
        ids[ids == settings.marks.image_id] = torch.cat([tokens.flatten() for tokens in sources])
    model.check_ids(ids.tolist())
    sampler = Sampler(settings.sampling if sampling is None else sampling, 1, model.device.calling)
    generated = _generated(model, ids.tolist(), one, settings.marks.codes, sampler)
    return Prior(upsampled(extracted(generated, one.params)), tuple(map(upsampled, sources)), generated, sampler.seed)


def _settings(model: Model) -> Settings:
    if CODES not in model.programs:
        raise IncompatibleArtifact("this model makes no tokens of images", field="family", expected="glm_image",
                                   found=model.artifact.manifest["family"])
    return Settings.open(model.file, model.text)


def _generated(model: Model, ids: list[int], one: Asked, codes: int, sampler: Sampler) -> torch.Tensor:
    """int64 [max_new_tokens]. The next step is begun before the host asks which token the last one chose."""
    holder, count = model.take_cache(), one.params.max_new_tokens
    sampler.observe(0, one.ids)
    slots = torch.arange(len(ids), len(ids) + count).unsqueeze(1)
    places = torch.cat([slots, one.ahead.T], 1)
    logits = model.extend(0, ids, 0, placed=Placed(one.positions))[:, -1]
    outside = torch.arange(logits.shape[-1], device=logits.device) >= codes
    found: list[int] = []
    for step in range(count):
        last = step == count - 1
        choice = sampler.choose(logits if last else logits.masked_fill(outside, -torch.inf))
        if not last:
            model.check_cache(holder)
            logits = model.advance(choice.tokens.unsqueeze(1), places[step:step + 1])[:, -1]
        found += choice.ids()
    return torch.tensor(found)
