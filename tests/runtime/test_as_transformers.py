"""`model.as_transformers()`: transformers' own generate over an artefact, padded either way, equals each prompt alone."""

from __future__ import annotations

import models
import pytest
import torch
from models import greedy, made, prompts

from glmc.errors import RequestOutOfBounds, UsageError


@pytest.fixture(scope="module")
def pair():
    model = made("glm4_moe", "float32")
    return model, model.session.as_transformers()


def padded(rows: list[list[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    gaps = [[0] * (width - len(r)) for r in rows]
    ids = [g + r if side == "left" else r + g for r, g in zip(rows, gaps, strict=True)]
    mask = [[0] * len(g) + [1] * len(r) if side == "left" else [1] * len(r) + [0] * len(g)
            for r, g in zip(rows, gaps, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_give_what_each_gives_alone(pair, side):
    model, wrapped = pair
    rows = prompts(model.config["vocab_size"], 7, 1, 12, seed=5)
    ids, mask = padded(rows, side)
    out = wrapped.generate(input_ids=ids, attention_mask=mask, max_new_tokens=10, do_sample=False)
    for row, answer in zip(rows, out[:, ids.shape[1]:].tolist(), strict=True):
        alone = greedy(model.reference, row, 10)
        assert answer[: len(alone)] == alone


def test_sampling_goes_through_transformers_own_processors(pair):
    model, wrapped = pair
    (row,) = prompts(model.config["vocab_size"], 6, seed=8)
    options = {"max_new_tokens": 8, "do_sample": True, "temperature": 0.9, "top_p": 0.9, "pad_token_id": 0}
    drawn = []
    for each in (wrapped, model.reference):
        torch.manual_seed(0)
        drawn.append(each.generate(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=torch.long),
                                   **options).tolist())
    assert drawn[0] == drawn[1]


def test_beams_and_large_batches_are_refused(pair):
    model, wrapped = pair
    (row,) = prompts(model.config["vocab_size"], 5, seed=9)
    with pytest.raises(UsageError, match="beam search"):
        wrapped.generate(input_ids=torch.tensor([row]), num_beams=2, max_new_tokens=4)
    too_many = torch.tensor([row] * (model.session.max_batch + 1))
    with pytest.raises(RequestOutOfBounds):
        wrapped.generate(input_ids=too_many, max_new_tokens=2)


def test_two_open_streams_do_not_share_the_cache_in_silence(pair):
    model, _ = pair
    first, second = (model.session.generate(p, max_new_tokens=6, stream=True)
                     for p in prompts(model.config["vocab_size"], 5, 4, seed=11))
    next(first)
    next(second)
    with pytest.raises(UsageError, match="took its cache"):
        list(first)
    list(second)
    assert second.result is not None


def test_logits_of_forward_are_those_of_the_session(pair):
    model, wrapped = pair
    (row,) = prompts(model.config["vocab_size"], 9, seed=10)
    ids = torch.tensor([row])
    assert torch.equal(wrapped(ids).logits, model.session.logits(ids))


def test_pixels_are_refused_and_not_left_out():
    seeing = models.made("glm_ocr", target="cpu").session
    wrapped = seeing.as_transformers()
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(wrapped(ids).logits, seeing.logits(ids))
    with pytest.raises(UsageError, match="do not go through"):
        wrapped(ids, pixel_values=torch.zeros(24, 294))
