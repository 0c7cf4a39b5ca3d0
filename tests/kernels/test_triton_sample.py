"""Tokens that interpreted Triton kernels choose are those that the CPU chooses; and the kernels are built for every GPU."""

from __future__ import annotations

import math

import pytest
import torch
import triton.language as tl
import within
from hypothesis import example, given, settings
from hypothesis import strategies as st
from triton import jit

from glmc.errors import NumericError
from glmc.kernels import triton
from glmc.kernels.sample import triton as sample
from glmc.kernels.sample.triton import bound_of
from glmc.passes import ahead
from glmc.passes.lower import Bounds
from glmc.program import Program, Region, Spec, Step
from glmc.runtime.sample import Sampler, Sampling
from glmc.target import TARGETS

GPUS = {name: target.gpu for name, target in TARGETS.items() if target.gpu is not None}
INF, LAST = math.inf, 1 - 2 ** -53
"""The greatest uniform number."""
MANY = (0.0, 0.4, LAST)
"""Uniform numbers, a row each."""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Few values at a time, so that a small vocabulary has several parts, and a part several chunks."""
    for name, size in (("PARTS", 2), ("CHUNK", 16), ("TILE", 8), ("LIST", 16)):
        monkeypatch.setattr(sample, name, size)


def sampler(sampling, uniforms):
    made = Sampler(sampling, len(uniforms))
    made._uniform = lambda row: torch.tensor(uniforms[row], dtype=torch.float64)
    return made


def agree(logits, sampling, uniforms, seen=None):
    """Both ways choose the same tokens, which are returned, or refuse the same row for the same reason."""
    def asked(way):
        try:
            return getattr(sampler(sampling, uniforms), way)(logits, seen).ids()
        except NumericError as fault:
            return fault.field, fault.found

    here = asked("here")
    with triton.interpreted():
        assert asked("there") == here
    return here


def rows(row, count=3):
    return torch.as_tensor(row, dtype=torch.float32).expand(count, -1)


TIES = torch.tensor([2.0, 1, 3, 1, 3, 2, 0, 3, -1, 1, 2, 2, 0, 1, 3, 2, 0, 1, 1, 2])
ROWS = {
    "one": [0.25], "equal": [1.5] * 30, "ties": TIES, "ties far below": torch.cat([TIES - 14, torch.tensor([0.0, -1, 0])]),
    "nothing but one": [-INF] * 10 + [2.0] + [-INF] * 10, "some are nothing": torch.where(TIES > 1, TIES, -INF),
    "both zeros": [0.0, -0.0, -1, 0.0, -0.0, -2], "one far above": [0.0] * 20 + [80.0, 0.0],
    "far apart": [-3e38, 3e38, 0, 3e38, -3e38], "random": torch.randn(37, generator=torch.Generator().manual_seed(1)) * 3,
}
OPTIONS = [Sampling(), Sampling(1.0), Sampling(1.0, top_p=0.5), Sampling(1.0, top_p=1e-9),
           Sampling(0.5, top_k=7, top_p=0.75)]
FURTHER = [("ties", Sampling(1.0, top_p=0.999)), ("ties", Sampling(1.0, top_k=1)), ("random", Sampling(1.0, top_p=0.999)),
           ("random", Sampling(2.0, top_k=5))]


@pytest.mark.parametrize(("row", "sampling"), [*((row, sampling) for row in ROWS for sampling in OPTIONS), *FURTHER], ids=str)
def test_the_tokens_of_the_host(row, sampling):
    agree(rows(ROWS[row]), sampling, MANY)


@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_top_k_as_wide_as_the_vocabulary_and_wider(top_p):
    for top_k in (len(TIES) - 1, len(TIES), 2 ** 40):
        agree(rows(TIES), Sampling(1.0, top_k, top_p), MANY)


@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 1e6, 1e300])
@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_cold_and_hot(temperature, top_p):
    assert agree(rows(TIES), Sampling(temperature, top_p=top_p), MANY)


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, [0]), (0.5, [0]), (0.50001, [0, 1]), (0.75, [0, 1]), (0.7501, [0, 1, 3])])
def test_top_p_keeps_the_smallest_set_with_that_mass_and_cuts_ties_from_the_lowest_position(top_p, kept):
    row = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    assert sorted(set(agree(rows(row, 9), Sampling(1.0, top_p=top_p), [n / 9 for n in range(9)]))) == kept


def test_rows_have_masks_of_their_own():
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(2)) * 2
    seen = torch.rand(3, 40, generator=torch.Generator().manual_seed(3)) < 0.3
    for sampling in (Sampling(repetition_penalty=1.7), Sampling(1.0, 9, 0.9, 0.6)):
        assert agree(logits, sampling, MANY, seen) != agree(logits, sampling, MANY, seen.roll(1, 0))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0), Sampling(1.0, 2, 0.5, 1.5)], ids=str)
@pytest.mark.parametrize("row", [[0, math.nan, 1], [math.nan] * 3, [0, INF, 1], [-INF, INF, math.nan], [-INF] * 3,
                                 [-INF, 1, 3e38]])
def test_what_is_not_finite_is_told_and_a_token_is_chosen_all_the_same(row, sampling):
    logits = torch.tensor([[0.0, 1, 2], row])
    refused = agree(logits, sampling, (0.5, 0.5), logits > 0)
    assert isinstance(refused, tuple) == (row[1] != 1)
    with triton.interpreted():
        assert all(0 <= token < 3 for token in sampler(sampling, (0.5, 0.5)).there(logits, logits > 0).tokens.tolist())


@pytest.mark.parametrize("sampling", [Sampling(1e-300), Sampling(repetition_penalty=1e-300), Sampling(1.0, 2, 0.9, 1e-300),
                                      Sampling(1.0, 0, 0.9, 1e300)], ids=str)
def test_options_beyond_float32(sampling):
    agree(torch.tensor([[1.0, 0.5, 0.0]]), sampling, (0.5,), torch.tensor([[True, False, True]]))


@jit
def bound_kernel(rests, bounds):
    tl.store(bounds + tl.program_id(0), bound_of(tl.load(rests + tl.program_id(0))))


def test_the_bound_of_what_goes_is_the_last_that_rounds_down_to_it():
    rests = torch.cat([torch.rand(20), torch.tensor([0.1, 0.5, 1.0, 1e-9, 1 - 2 ** -24])])
    bounds = torch.empty(len(rests), dtype=torch.float64)
    with triton.interpreted():
        triton.launch(bound_kernel, (len(rests),), rests, bounds)
    assert bool((bounds.float() <= rests).all())
    assert bool((bounds.nextafter(torch.tensor(2.0, dtype=torch.float64)).float() > rests).all())


def test_greedy_takes_the_last_where_something_is_nan():
    logits = torch.tensor([[1.0, math.nan, 0], [0, 2, 2]])
    with triton.interpreted():
        tokens, told = sample.run(logits, None, None)
    assert tokens.tolist() == [2, 1]
    assert told.nan_to_num(-7).tolist() == [[2, 1], [-7, 2], [-7, 2]]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), vocabulary=st.integers(1, 50), temperature=st.sampled_from([0.0, 0.05, 0.7, 4]),
       top_k=st.integers(0, 60), top_p=st.one_of(st.floats(0.01, 1), st.just(1.0)), penalty=st.sampled_from([1.0, 1.3, 0.6]),
       kind=st.sampled_from(["float32", "bfloat16", "grid"]), uniform=st.floats(0, LAST))
@example(0, 1, 1.0, 0, 0.5, 1.0, "grid", 0.0)
def test_any_logits_and_options(seed, vocabulary, temperature, top_k, top_p, penalty, kind, uniform):
    drawn = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, vocabulary, generator=drawn) * 5
    logits = logits.round() if kind == "grid" else logits.bfloat16() if kind == "bfloat16" else logits
    seen = torch.rand(3, vocabulary, generator=drawn) < 0.4
    agree(logits, Sampling(temperature, top_k, top_p, penalty), (uniform, 0.4, 0.8), seen)


@pytest.mark.parametrize(("sampling", "size", "dtype"), [
    (Sampling(), 151_552, torch.bfloat16), (Sampling(1.0, 40, 0.9), 151_552, torch.float32),
    (Sampling(1.3, top_p=0.95), 9_001, torch.bfloat16)], ids=str)
def test_vocabularies_as_they_are_published(sampling, size, dtype, monkeypatch):
    monkeypatch.undo()
    logits = torch.randn(1, size, generator=torch.Generator().manual_seed(4)) * 3
    agree(logits.to(dtype), sampling, (0.37,))


@pytest.mark.parametrize("asked", ahead.CHOICES, ids=str)
def test_every_load_and_store_stays_in_its_tensors_and_logits_may_be_part_of_a_wider_row(asked, monkeypatch):
    wide = torch.randn(2, 3, 45, generator=torch.Generator().manual_seed(5)).bfloat16()
    given, uniforms = wide[:, 1, 2:41], torch.tensor([0.2, 0.9], dtype=torch.float64) if asked else None
    with triton.interpreted():
        wanted = sample.run(given.contiguous(), None, uniforms, **asked)
        seen = within.watch(monkeypatch)
        assert all(map(torch.equal, sample.run(given, None, uniforms, **asked), wanted))
    assert seen[0], "no access was looked at"


def head(dtype, vocabulary):
    """A program of one region whose result is logits, as a text has it."""
    spec = Spec(dtype, ("B", "S", vocabulary))
    region = Region("head_1", (("x", "value", spec),), (spec,), ("return (x,)",))
    return Program({"head_1": region}, (Step("head_1", ("input:x",), ("value:1",)),), "value:1")


def asked_ahead(dtype, vocabulary, most):
    return ahead.launches({"text": head(dtype, vocabulary)}, {}, Bounds(most, 16))


def test_every_choice_is_known_ahead_whatever_the_numbers():
    known = {launch.digest for launch in asked_ahead("bfloat16", 151_552, 8)}
    with triton.noted() as notes, torch.device("meta"):
        for rows in (1, 3, 7):
            logits = torch.empty(rows, 1, 151_552, dtype=torch.bfloat16)[:, -1]
            for top_k, top_p in ((0, 0.97), (50, 1.0), (151_551, 0.1), (200_000, 1.0), (0, 1.0)):
                sample.run(logits, None, torch.empty(rows, dtype=torch.float64), temperature=1.4, top_k=top_k, top_p=top_p)
            sample.run(logits, torch.empty(rows, 151_552, dtype=torch.bool), None, penalty=0.3)
            sample.run(logits, None, None)
    assert {launch.digest for launch in notes} <= known
    assert len(known) <= 15


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize(("dtype", "vocabulary"), [("bfloat16", 151_552), ("float32", 59_392)])
def test_every_choice_is_built_without_spills(gpu, dtype, vocabulary, tmp_path, monkeypatch):
    """Parts of several chunks, and of one."""
    monkeypatch.undo()
    wanted = asked_ahead(dtype, vocabulary, 1)
    assert {launch.kernel.fn.__module__ for launch in wanted} == {"glmc.kernels.sample.triton"}
    for launch in wanted:
        _, _, used = triton.build(launch, GPUS[gpu], tmp_path)
        assert used["spilled_bytes"] == 0, launch.name
        assert used["shared_bytes"] <= 48 << 10, launch.name
