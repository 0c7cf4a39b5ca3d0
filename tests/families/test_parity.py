"""Every family and variant gives transformers' numbers, and the tokens do not depend on how they are asked for."""

from __future__ import annotations

import copy

import models
import pytest
import torch

NEW = 64
LENGTHS = (1, 2, 5, 16)


# What a variant changes is in the regions' text alone, but for these: engine `fx` runs every family and what has odd sizes.
INTERPRETED = [*models.READING, "glm4_moe-odd", "glm4_moe-no-qk-norm", "glm_moe_dsa-own-indexers"]
PAIRS = [*(("fx", name) for name in INTERPRETED), *(("cpu", name) for name in models.VARIANTS)]


@pytest.fixture(params=PAIRS, ids="-".join)
def made(request):
    target, variant = request.param
    return models.made(variant, target=target)


def close(made, ids, tolerance=1e-4):
    reference = models.logits(made.reference, ids)
    ours = made.session.logits(torch.tensor([ids]))[0]
    assert ours.dtype == torch.float32
    assert ours.shape == reference.shape
    assert reference.abs().max() > 0.5, "logits near zero would hide a difference"
    assert (ours - reference).abs().max() < tolerance


@pytest.mark.parametrize("length", [1, 2, 17, models.MAX_LEN])
def test_logits(made, length):
    close(made, models.prompts(131, length)[0])


def test_logits_of_many_rows(made):
    ids = torch.tensor(models.prompts(131, 7, 7, 7))
    ours = made.session.logits(ids)
    for row in range(3):
        assert (ours[row] - models.logits(made.reference, ids[row].tolist())).abs().max() < 1e-4


def test_greedy_tokens(made):
    for ids in models.prompts(131, *LENGTHS):
        assert made.session.generate(ids, max_new_tokens=NEW).token_ids == models.greedy(made.reference, ids, NEW)


def test_a_batch_of_unequal_prompts_is_its_rows_alone(made):
    rows = models.prompts(131, 5, 16, 1)
    batch = made.session.generate_batch(rows, max_new_tokens=NEW)
    alone = [made.session.generate(ids, max_new_tokens=NEW) for ids in rows]
    assert [b.token_ids for b in batch] == [a.token_ids for a in alone]
    assert [b.finish_reason for b in batch] == [a.finish_reason for a in alone]


def test_a_prompt_that_fills_the_bound_gives_one_token(made):
    (ids,) = models.prompts(131, models.MAX_LEN)
    answer = made.session.generate(ids, max_new_tokens=NEW)
    assert answer.token_ids == models.greedy(made.reference, ids, 1)
    assert answer.finish_reason == ("length" if answer.token_ids else "stop")


@pytest.mark.parametrize("cut", [1, 9, 16])
def test_two_chunks_equal_one(made, cut):
    (ids,) = models.prompts(131, 17)
    whole = made.session.extend(0, ids, 0, every_row=True).clone()
    parts = [made.session.extend(0, ids[:cut], 0, every_row=True).clone(),
             made.session.extend(0, ids[cut:], cut, every_row=True)]
    assert (torch.cat(parts, 1) - whole).abs().max() < 1e-5


def test_one_answer_leaves_nothing_behind_for_the_next(made):
    long, short = models.prompts(131, 40, 3)
    first = made.session.generate(short, max_new_tokens=8).token_ids
    made.session.generate(long, max_new_tokens=8)
    assert made.session.generate(short, max_new_tokens=8).token_ids == first


def errors(model, reference, prompts):
    """(largest, mean) absolute difference of logits over all prompts."""
    apart = torch.cat([(model(ids).double() - models.logits(reference, ids)).abs().flatten() for ids in prompts])
    return apart.max().item(), apart.mean().item()


def half_as_good_at_worst(made):
    """glmc in bfloat16 is at most twice as far from float64 as transformers in bfloat16 is."""
    exact = copy.deepcopy(made.reference).double()
    prompts = models.prompts(131, 1, 3, 8, 17, 33, 64, 80, 80)
    ours = errors(lambda ids: made.session.logits(torch.tensor([ids]))[0], exact, prompts)
    theirs = errors(lambda ids: models.logits(made.reference, ids), exact, prompts)
    assert ours[0] <= 2 * theirs[0]
    assert ours[1] <= 2 * theirs[1]


@pytest.mark.parametrize(("target", "family"), [("fx", "glm4_moe"), ("fx", "glm_moe_dsa"),
                                                *(("cpu", name) for name in models.READING)])
def test_bfloat16_is_as_near_to_float64_as_transformers_is(family, target):
    half_as_good_at_worst(models.made(family, "bfloat16", target=target))


def test_aoti_logits():
    made = models.aot()
    for ids in models.prompts(131, 1, 2, 17, models.MAX_LEN):
        close(made, ids)


def test_aoti_tokens():
    made = models.aot()
    rows = models.prompts(131, *LENGTHS)
    expected = [models.greedy(made.reference, ids, NEW) for ids in rows]
    assert [made.session.generate(ids, max_new_tokens=NEW).token_ids for ids in rows] == expected


@pytest.mark.slow
def test_aoti_rows():
    made = models.made("glm4_moe", target="cpu:aoti", max_batch=2, num_hidden_layers=2, first_k_dense_replace=0)
    rows = models.prompts(131, 3, 17)
    expected = [models.greedy(made.reference, ids, NEW) for ids in rows]
    assert [a.token_ids for a in made.session.generate_batch(rows, max_new_tokens=NEW)] == expected


def test_aoti_chunks():
    made = models.aot()
    (ids,) = models.prompts(131, 17)
    whole = made.session.extend(0, ids, 0, every_row=True).clone()
    for cut in (1, 9, 16):
        parts = [made.session.extend(0, ids[:cut], 0, every_row=True).clone(),
                 made.session.extend(0, ids[cut:], cut, every_row=True)]
        assert (torch.cat(parts, 1) - whole).abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("family", models.READING)
def test_aoti_in_bfloat16_is_as_near_to_float64_as_transformers_is(family):
    half_as_good_at_worst(models.made(family, "bfloat16", target="cpu:aoti", max_batch=1))
