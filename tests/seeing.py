"""Prompts with images and videos for the tiny vision models, as transformers and as glmc take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import models
import torch

from glmc.runtime.prompt import Prompt, Seen

IMAGE, BEGIN_IMAGE, END_IMAGE, BEGIN_VIDEO, END_VIDEO = 120, 122, 123, 124, 125
"""Ids of the tiny configurations."""
MERGE = 2


@dataclass(frozen=True)
class Asked:
    """One prompt in two forms. `given`: the arguments of transformers' model."""

    prompt: Prompt
    given: dict[str, Any]


def asked(made: models.Made, *parts: int | tuple[int, int] | tuple[int, int, int], seed: int = 5) -> Asked:
    """Parts in order: so many random text tokens, an image of (rows, columns) of patches, a video of (frames, rows, columns).

    The positions are transformers' own. A prompt has images or videos, not both: transformers counts all their tokens as of
    one kind.
    """
    draw = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    kinds: list[int] = []
    grids: dict[int, list[list[int]]] = {1: [], 2: []}

    def say(*tokens: int, kind: int = 0) -> None:
        ids.extend(tokens)
        kinds.extend([kind] * len(tokens))

    for part in parts:
        if isinstance(part, int):
            say(*torch.randint(2, IMAGE, (part,), generator=draw).tolist())
            continue
        kind = len(part) - 1
        frames, rows, columns = (1, *part)[-3:]
        grids[kind].append([frames, rows, columns])
        if kind == 2:
            say(BEGIN_VIDEO)
        for frame in range(frames):
            say(BEGIN_IMAGE)
            say(*[IMAGE] * (rows * columns // MERGE**2), kind=kind)
            say(END_IMAGE, *([7 + frame] if kind == 2 else []))
        if kind == 2:
            say(END_VIDEO)
    vision = made.config["vision_config"]
    width = 3 * vision["temporal_patch_size"] * vision["patch_size"] ** 2
    given: dict[str, Any] = {"input_ids": torch.tensor([ids]), "mm_token_type_ids": torch.tensor([kinds])}
    flat: list[list[int]] = []
    pixels = []
    for kind, names in ((1, ("pixel_values", "image_grid_thw")), (2, ("pixel_values_videos", "video_grid_thw"))):
        if grids[kind]:
            grid = torch.tensor(grids[kind])
            pixels.append(torch.randn(int(grid.prod(1).sum()), width, generator=draw))
            given |= dict(zip(names, (pixels[-1], grid), strict=True))
            flat += [[1, rows, columns] for frames, rows, columns in grids[kind] for _ in range(frames)]
    if not flat:
        return Asked(Prompt(ids), {"input_ids": torch.tensor([ids])})
    positions, _ = made.reference.model.get_rope_index(
        given["input_ids"], given["mm_token_type_ids"], given.get("image_grid_thw"), given.get("video_grid_thw"))
    media = torch.full((len(ids),), -1)
    places = torch.tensor(kinds) > 0
    media[places] = torch.arange(int(places.sum()))
    return Asked(Prompt(ids, Seen(torch.cat(pixels), torch.tensor(flat), positions[:, 0], media)), given)


@torch.no_grad()
def logits(made: models.Made, one: Asked) -> torch.Tensor:
    """transformers' logits, [tokens, vocabulary]."""
    return made.reference(**one.given).logits[0]


@torch.no_grad()
def greedy(made: models.Made, one: Asked, count: int) -> list[int]:
    """What transformers' generate adds, without the final stop token."""
    whole = made.reference.generate(**one.given, max_new_tokens=count, do_sample=False, pad_token_id=0)
    added = whole[0, len(one.prompt.ids):].tolist()
    return added[:-1] if added[-1:] == [1] else added
