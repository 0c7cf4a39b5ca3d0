"""Every vision family gives transformers' numbers on images and videos, alone and in a batch."""

from __future__ import annotations

import dataclasses

import models
import pytest
import seeing
import torch

from glmc.errors import RequestOutOfBounds
from glmc.runtime.media.order import ends, order
from glmc.runtime.prompt import Prompt, Seen

NEW = 32
PROMPTS = {
    "an image": (3, (4, 6), 4),
    "images of unequal size": (2, (2, 8), 1, (6, 4), 3, (2, 2), 2),
    "a video": (2, (3, 4, 4), 3),
    "videos of unequal size": (1, (2, 2, 6), 2, (3, 4, 2), 1),
    "text": (17,),
}
MADE = [*(("cpu", family) for family in models.SEEING), ("fx", "glm4v_moe"), ("fx", "glm_ocr"), ("onnx", "glm4v")]
"""Engine `fx` runs the towers of both kinds and both kinds of text model; beside `onnx` it runs the tower too."""


@pytest.fixture(params=MADE, ids="-".join)
def made(request):
    target, family = request.param
    return models.made(family, target=target)


@pytest.mark.parametrize("parts", PROMPTS.values(), ids=PROMPTS)
def test_logits(made, parts):
    one = seeing.asked(made, *parts)
    wanted = seeing.logits(made, one)
    made.session.take_cache()
    found = made.session.prefill(0, one.prompt, every_row=True)[0]
    assert wanted.abs().max() > 0.5, "logits near zero would hide a difference"
    assert (found - wanted).abs().max() < 1e-4


def test_what_is_seen_matters(made):
    one = seeing.asked(made, *PROMPTS["an image"])
    other = Prompt(one.prompt.ids, Seen(-one.prompt.seen.pixels, *(getattr(one.prompt.seen, n) for n in (
        "grid", "positions", "media"))))
    both = [made.session.prefill(0, p)[0, -1].clone() for p in (one.prompt, other)]
    assert (both[0] - both[1]).abs().max() > 1e-2


def test_greedy_tokens(made):
    for parts in (PROMPTS["images of unequal size"], PROMPTS["videos of unequal size"]):
        one = seeing.asked(made, *parts)
        assert made.session.generate(one.prompt, max_new_tokens=NEW).token_ids == seeing.greedy(made, one, NEW)


def test_a_batch_with_unequal_media_is_its_rows_alone(made):
    rows = [seeing.asked(made, *PROMPTS[name]).prompt for name in ("text", "a video", "images of unequal size")]
    batch = made.session.generate_batch(rows, max_new_tokens=NEW)
    assert [b.token_ids for b in batch] == [made.session.generate(p, max_new_tokens=NEW).token_ids for p in rows]


@pytest.mark.parametrize("grid", [[[1, 4, 6], [1, 2, 2]], [[1, 6, 2]]])
def test_patches_are_in_the_published_order(grid):
    from glmc.vision_parts import layout

    grid = torch.tensor(grid)
    positions, bounds = layout(grid, seeing.MERGE)
    assert torch.equal(order(grid, seeing.MERGE), positions)
    assert torch.equal(ends(grid), bounds)


@pytest.mark.parametrize(("grid", "rows"), [([[1, 3, 4]], 12), ([[2, 4, 4]], 32), ([[1, 4, 4]], 15), ([], 0), ([[1, 0, 4]], 0)])
def test_a_grid_that_is_none_is_refused(grid, rows):
    session = models.made("glm_ocr", target="fx").session
    with pytest.raises(RequestOutOfBounds):
        session.vision(torch.zeros(rows, 294), torch.tensor(grid, dtype=torch.int64).view(-1, 3))


@pytest.mark.parametrize(("name", "changed"), [("media", lambda t: t[:-1]), ("positions", lambda t: t[:, :-1]),
                                               ("media", lambda t: t.int()), ("media", lambda t: t + 99)])
def test_a_prompt_whose_images_do_not_fit_its_tokens_is_refused(name, changed):
    made = models.made("glm_ocr", target="cpu")
    prompt = seeing.asked(made, *PROMPTS["an image"]).prompt
    broken = dataclasses.replace(prompt.seen, **{name: changed(getattr(prompt.seen, name))})
    with pytest.raises(RequestOutOfBounds):
        made.session.prefill(0, Prompt(prompt.ids, broken))
