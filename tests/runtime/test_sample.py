"""Sampling keeps exactly the tokens transformers' processors keep, with their probabilities, and is reproducible."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from glmc.errors import NumericError, RequestOutOfBounds, UsageError
from glmc.kernels import triton
from glmc.runtime.sample import Sampler, Sampling, penalised, survivors

INF, NAN = math.inf, math.nan


def reference(row, ids, sampling):
    """The scores [V] that transformers' generate would hand to softmax for one row and its ids so far."""
    scores, ids = row.float()[None], torch.tensor([ids], dtype=torch.int64)
    if sampling.repetition_penalty != 1 and ids.numel():
        scores = RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty))(ids, scores)
    if sampling.temperature != 1:
        scores = TemperatureLogitsWarper(float(sampling.temperature))(ids, scores)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(ids, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(ids, scores)
    return scores[0]


def ours(row, ids, sampling):
    """The same from this module: probabilities [V] float32."""
    seen = torch.zeros(1, row.numel(), dtype=torch.bool)
    seen[0, [i for i in ids if i < row.numel()]] = True
    scores = penalised(row.float()[None], seen, sampling.repetition_penalty)[0] / sampling.temperature
    kept, weights = survivors(scores, sampling.top_k, sampling.top_p)
    return torch.zeros(row.numel()).index_put((kept,), weights / weights.sum())


samplings = st.builds(
    Sampling, temperature=st.floats(0.05, 4), top_k=st.integers(0, 60), top_p=st.floats(0.01, 1),
    repetition_penalty=st.floats(0.3, 3),
)


@settings(max_examples=150, deadline=None)
@given(sampling=samplings, seed=st.integers(0, 2**31), vocab=st.integers(1, 50), spread=st.floats(0.1, 20),
       bf16=st.booleans(), grid=st.booleans(), ids=st.lists(st.integers(0, 60), max_size=12))
@example(Sampling(1.0, top_p=0.5), 0, 1, 1.0, False, False, [])
def test_the_same_tokens_and_probabilities_as_transformers(sampling, seed, vocab, spread, bf16, grid, ids):
    row = torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * spread
    row = row.round() if grid else row  # whole numbers tie often
    row = row.bfloat16() if bf16 else row
    grid = row.unique().numel() < vocab
    expected = reference(row, ids, sampling).softmax(-1)
    found = ours(row, ids, sampling)
    if grid:  # which of equal values top-p cuts is left open by transformers' sort; how many is not
        found, expected = found.sort().values, expected.sort().values
    assert torch.equal(found > 0, expected > 0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("top_k", [0, 50])
def test_a_wide_vocabulary_keeps_the_same_tokens(top_p, top_k):
    row = torch.randn(151_552, generator=torch.Generator().manual_seed(3)) * 4
    sampling = Sampling(0.8, top_k, top_p)
    expected = reference(row, [], sampling).softmax(-1)
    assert torch.equal(ours(row, [], sampling) > 0, expected > 0)


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, 1), (0.5, 1), (0.50001, 2), (0.75, 2), (0.7501, 3), (1.0, 4)])
def test_top_p_keeps_the_smallest_set_with_that_mass(top_p, kept):
    row = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    assert len(survivors(row, 0, top_p)[0]) == kept


def test_top_k_keeps_every_tie_of_the_kth_value():
    assert survivors(torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0, 0.0]), 2, 1.0)[0].tolist() == [1, 2, 3, 4]


def test_top_p_cuts_ties_from_the_lowest_id():
    assert sorted(survivors(torch.zeros(4), 0, 0.5)[0].tolist()) == [2, 3]


@pytest.fixture(params=["here", "there"])
def place(request, monkeypatch):
    """Both ways of choosing, that of a GPU in Triton's interpreter."""
    monkeypatch.setattr(Sampler, "here", getattr(Sampler, request.param))
    with triton.interpreted():
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_takes_the_lowest_of_equal_maxima(dtype, place):
    logits = torch.tensor([[0, 5, 5, 1], [-INF, -INF, -3, -3]], dtype=dtype)
    assert Sampler(Sampling(), 2)(logits).tolist() == [1, 2]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), penalty=st.floats(0.3, 3), steps=st.integers(1, 5))
def test_greedy_with_a_penalty_follows_transformers(seed, penalty, steps):
    generator = torch.Generator().manual_seed(seed)
    prompts = [[1, 2, 2], [7]]
    sampler = Sampler(Sampling(repetition_penalty=penalty), 2)
    for row, ids in enumerate(prompts):
        sampler.observe(row, ids)
    for _ in range(steps):
        logits = torch.randn(2, 9, generator=generator)
        expected = [reference(logits[r], prompts[r], Sampling(1.0, repetition_penalty=penalty)).argmax().item()
                    for r in range(2)]
        given_lists = Sampler(sampler.sampling, 2)(logits, [torch.tensor(ids) for ids in prompts])
        found = sampler(logits)
        assert found.tolist() == expected == given_lists.tolist()
        for row, token in enumerate(expected):
            prompts[row].append(token)


@pytest.mark.parametrize("sampling", [
    Sampling(1.0, seed=11), Sampling(0.7, top_k=5, seed=12), Sampling(1.3, top_p=0.8, seed=13),
    Sampling(0.9, top_k=6, top_p=0.9, repetition_penalty=1.4, seed=14),
])
def test_frequencies_fit_the_distribution(sampling):
    row = torch.randn(12, generator=torch.Generator().manual_seed(5)) * 1.5
    ids, draws = [0, 3], 3000
    expected = reference(row, ids, sampling).softmax(-1) * draws
    sampler, seen = Sampler(sampling, 1), [torch.tensor(ids)]
    counts = torch.zeros(12)
    for _ in range(draws):
        counts[sampler(row[None], seen)[0]] += 1
    kept = expected > 0
    assert counts[~kept].sum() == 0
    statistic = ((counts - expected)[kept] ** 2 / expected[kept]).sum().item()
    freedom = int(kept.sum()) - 1
    # Beyond the 99.99 % quantile of chi-square (Wilson and Hilferty's approximation); the seeds are fixed.
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 3.719 * math.sqrt(2 / (9 * freedom))) ** 3


def test_a_row_draws_the_same_alone_and_in_a_batch():
    sampling = Sampling(1.0, top_k=20, top_p=0.95, repetition_penalty=1.2, seed=7)
    logits = torch.randn(10, 3, 500, generator=torch.Generator().manual_seed(1))
    batch = Sampler(sampling, 3)
    together = torch.stack([batch(step) for step in logits])
    for row in range(3):
        alone = Sampler(sampling, 1)
        assert [alone(step[row:row + 1]).item() for step in logits] == together[:, row].tolist()


def test_seeds_repeat_and_fresh_ones_are_reported():
    logits = torch.zeros(20, 1, 1000)

    def draw(seed):
        sampler = Sampler(Sampling(1.0, seed=seed), 1)
        return sampler.seed, [sampler(step).item() for step in logits]

    assert draw(2**63 - 1) == draw(2**63 - 1)
    seed, tokens = draw(None)
    assert draw(seed)[1] == tokens
    assert draw(None)[1] != tokens


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0), Sampling(repetition_penalty=1.1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("row", "found"), [
    ([0, NAN, 1], "nan"), ([NAN] * 3, "nan"), ([0, INF, 1], "+inf"), ([-INF, INF, 0], "+inf"), ([INF, NAN, 0], "nan"),
    ([-INF] * 3, "only -inf"), ([0, -INF, 1], None), ([-INF, -INF, -5], None),
])
def test_non_finite_logits_are_refused_by_row_and_step(sampling, dtype, row, found, place):
    sampler = Sampler(sampling, 2)
    sampler(torch.zeros(2, 3, dtype=dtype))
    logits = torch.tensor([[0, 0, 0], row], dtype=dtype)
    if found is None:
        assert math.isfinite(row[sampler(logits)[1]])
        return
    with pytest.raises(NumericError) as refusal:
        sampler(logits)
    assert refusal.value.field == "row 1, step 1"
    assert refusal.value.found == found


def test_a_temperature_or_penalty_beyond_float32_is_refused(place):
    for sampling in (Sampling(1e-300), Sampling(repetition_penalty=1e-300)):
        sampler = Sampler(sampling, 1)
        sampler.observe(0, [0])
        with pytest.raises(NumericError):
            sampler(torch.tensor([[1.0, 0.5]]))


@pytest.mark.parametrize("sampling", [
    Sampling(), Sampling(repetition_penalty=1.4), Sampling(1.0, seed=3), Sampling(0.8, 5, 0.95, 1.1, seed=1)], ids=str)
def test_a_device_chooses_step_by_step_what_the_host_would(sampling):
    """The code for GPUs, interpreted: the same seeds, the same logits, the same tokens, which the penalty remembers."""
    logits = torch.randn(3, 2, 30, generator=torch.Generator().manual_seed(3)) * 3
    here, there = Sampler(sampling, 2), Sampler(sampling, 2, triton.interpreted)
    there.here = there.there
    for sampler in (here, there):
        sampler.observe(1, [0, 5])
    for step in logits:
        choice = there.choose(step)
        assert here(step).tolist() == choice.ids() == choice.tokens.tolist()


def test_a_device_is_asked_once_and_late(monkeypatch):
    """Choosing asks for no value; `ids` is where the host waits, and where it learns what cannot be."""
    sampler = Sampler(Sampling(0.7, 3, 0.9, 1.2, seed=2), 2, triton.interpreted)
    sampler.here = sampler.there
    asked = []
    for name in ("item", "tolist", "nonzero", "__bool__", "__int__", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, name=name: asked.append(name))
    choice = sampler.choose(torch.tensor([[0.0, 1.0, 2.0, 3.0], [NAN, 1.0, 2.0, 3.0]]))
    monkeypatch.undo()
    assert not asked
    assert 0 <= int(choice.tokens.min()) <= int(choice.tokens.max()) < 4, "a step can be begun with what was chosen of NaN"
    with pytest.raises(NumericError, match="nan") as refusal:
        choice.ids()
    assert refusal.value.field == "row 1, step 0"


@pytest.mark.parametrize(("field", "value"), [
    ("temperature", -0.1), ("temperature", NAN), ("temperature", INF), ("temperature", "1"), ("temperature", True),
    ("top_k", -1), ("top_k", 1.5), ("top_k", True), ("top_p", 0.0), ("top_p", 1.01), ("top_p", NAN),
    ("repetition_penalty", 0), ("repetition_penalty", INF), ("repetition_penalty", None),
    ("seed", -1), ("seed", 2**63), ("seed", 1.0), ("seed", False),
])
def test_options_out_of_range_are_named(field, value):
    with pytest.raises(UsageError) as refusal:
        Sampling(**{field: value})
    assert refusal.value.field == field


def test_what_does_not_fit_is_refused():
    sampler = Sampler(Sampling(repetition_penalty=2.0), 2)
    for logits in (torch.zeros(3, 4), torch.zeros(4), torch.zeros(2, 0), torch.zeros(2, 4, dtype=torch.int64)):
        with pytest.raises(RequestOutOfBounds):
            sampler(logits)
    for seen in ([torch.tensor([1])], torch.zeros(2, 4), torch.zeros(2, 5, dtype=torch.bool)):
        with pytest.raises(RequestOutOfBounds):
            sampler(torch.zeros(2, 4), seen)
    for row, ids in ((2, [1]), (-1, [1]), (0, [-1]), (0, [1.5]), (0, torch.tensor([-1])), (0, torch.tensor([0.5]))):
        with pytest.raises(RequestOutOfBounds):
            sampler.observe(row, ids)
    sampler(torch.zeros(2, 4))
    with pytest.raises(RequestOutOfBounds):
        sampler(torch.zeros(2, 5))


def test_ids_beyond_the_logits_are_ignored():
    sampler = Sampler(Sampling(repetition_penalty=2.0), 1)
    sampler.observe(0, [1, 9, 4])
    assert sampler(torch.tensor([[1.0, 1.5, 0.1, 0.2]])).item() == 0
