"""Fuse if faster: what is kept, what is refused and why, what takes the place of a refused site. Figures are from a script."""

from __future__ import annotations

import pytest
import racing
import torch
import traced
from proving import graph_of

from glmc.passes import declare
from glmc.passes.choose import choose
from glmc.passes.contenders import as_engine_fx, runnable
from glmc.passes.faster import WON_BACK, Judge, beside, buckets, notes, refusal, settle
from glmc.passes.lower import Bounds
from glmc.target import named

CPU = named("cpu")
PARTS = ("qk_norm_rope", "rms_norm", "rope")
BUCKETS = tuple(buckets(Bounds(4, 4096)))
ONE, ALL, SHORT, LONG = (bucket.name for bucket in BUCKETS)


@pytest.fixture
def overlapping():
    """A graph with one site of each of PARTS, the first of which holds the others."""
    graph = traced.reference_graph(traced.unseen(declare.load("qk_norm_rope"), 0, 1), torch.float32)
    return graph, [s for name in PARTS for s in traced.find(declare.load(name), graph).sites]


def settled(overlapping, script):
    """(reasons by fusion, the pieces that were timed, the verdicts)."""
    graph, sites = overlapping
    judge, pieces = racing.judge(script)
    decisions, verdicts = settle(sites, graph, CPU, judge=judge)
    return {d.site.fusion: d.reason for d in decisions}, pieces, verdicts


@pytest.mark.parametrize(("bounds", "names"), [
    (Bounds(1, 4096), ["decode, 1 row", "prefill, 512 tokens", "prefill, 4096 tokens"]),
    (Bounds(4, 100_000), ["decode, 1 row", "decode, 4 rows", "prefill, 512 tokens", "prefill, 8192 tokens"]),
    (Bounds(1, 80), ["decode, 1 row", "prefill, 80 tokens"]),
])
def test_buckets_lie_within_the_bounds(bounds, names):
    made = list(buckets(bounds))
    assert [b.name for b in made] == names
    assert all(b.sizes["B"] <= bounds.max_batch and b.sizes["S"] <= b.sizes["L"] <= bounds.slots for b in made)


def test_an_indexer_has_enough_slots_in_every_bucket():
    assert all(b.sizes["L"] >= 2048 for b in buckets(Bounds(2, 512, least=2048)))


@pytest.mark.parametrize(("bounds", "patches"), [(Bounds(1, 4096), [1024, 4096]), (Bounds(1, 100_000), [1024, 4096]),
                                                 (Bounds(4, 600), [1024, 2400]), (Bounds(1, 8), [32])])
def test_images_beside_the_text_are_such_as_a_prompt_holds(bounds, patches):
    images = [b for b in beside(bounds) if "F" in b.sizes]
    assert [(b.name, b.sizes["P"], 4 * b.sizes["M"]) for b in images] == [(f"image, {n} patches", n, n) for n in patches]
    assert not any(b.decode for b in beside(bounds))


@pytest.mark.parametrize(("letters", "names"), [
    ("BSL", [b.name for b in BUCKETS]), ("BSLM", [b.name for b in BUCKETS]),
    ("MF", ["image, 1024 patches", "image, 4096 patches"]), ("PF", ["image, 1024 patches", "image, 4096 patches"]),
    ("HW", ["picture, 32 x 32", "picture, 64 x 64"]), ("BT", ["picture, 32 x 32", "picture, 64 x 64"]),
    ("BTHWK", ["picture, 32 x 32", "picture, 64 x 64"]), ("BX", ["no bucket"])])
def test_each_part_is_timed_where_its_sizes_are_known(letters, names):
    piece = racing.piece()
    judge = Judge((*BUCKETS, *beside(Bounds(4, 4096))), lambda piece, bucket, values: racing.timing(bucket, racing.FAST))
    timings = judge.timings(piece, {f"s{n}": letter for n, letter in enumerate(letters, 100)})
    assert [t.bucket.name for t in timings] == names
    assert timings[0].figures or timings[0].reasons == {"inputs": "none has the sizes B, X"}


SMALL, LARGE = (bucket.name for bucket in beside(Bounds(1, 4096)) if "F" in bucket.sizes)


@pytest.mark.parametrize(("told", "reason"), [
    ({}, None),
    ({SMALL: {"ours": 3.1, "plain": 2.9}}, "slower here: image, 1024 patches: ours 3.1 us, plain steps 2.9 us"),
    ({LARGE: {"ours": 31, "plain": 29}}, "slower here: image, 4096 patches: ours 31 us, plain steps 29 us"),
    ({SMALL: {"ours": 1.0, "plain": 100.0}, LARGE: {"ours": 6.0, "plain": 5.0}},
     "slower here: image, 4096 patches: ours 6 us, plain steps 5 us"),
    ({LARGE: {"ours": 3.1, "plain": 3.08}}, None),
    ({LARGE: {"inputs": "no memory"}}, None)], ids=str)
def test_what_runs_once_for_an_image_wins_nothing_back(told, reason):
    timings = tuple(racing.timing(bucket, told.get(bucket.name, racing.FAST)) for bucket in beside(Bounds(1, 4096))
                    if "F" in bucket.sizes)
    assert refusal(timings) == reason


@pytest.mark.parametrize(("told", "reason"), [
    ({}, None),
    ({ONE: {"ours": 3.1, "plain": 2.9}}, "slower here: decode, 1 row: ours 3.1 us, plain steps 2.9 us"),
    ({ONE: {"ours": 3.1, "plain": 3.08}}, None),
    ({ALL: {"ours": 3.1, "plain": 2.9}}, "slower here: decode, 4 rows: ours 3.1 us, plain steps 2.9 us"),
    ({ONE: {"ours": 3.1, "plain": 9.0, "smaller": 2.5}}, "slower here: decode, 1 row: ours 3.1 us, smaller fusions 2.5 us"),
    ({ONE: {"ours": 3.1, "plain": 2.5, "smaller": 9.0}}, "slower here: decode, 1 row: ours 3.1 us, plain steps 2.5 us"),
    ({LONG: {"ours": 300.0, "plain": 200.0}}, None),
    ({LONG: {"ours": 900.0, "plain": 500.0}},
     "slower here: prefill, 4096 tokens: ours 900 us, plain steps 500 us; 128 tokens of the answer win back 384 us"),
    ({ONE: {"ours": 5.0, "plain": 5.0}, SHORT: {"ours": 6.0, "plain": 5.0}},
     "slower here: prefill, 512 tokens: ours 6 us, plain steps 5 us; 128 tokens of the answer win back 0 us"),
    ({ONE: {"ours": "OutOfResources: shared memory", "plain": 5.0}},
     "does not run here: decode, 1 row: OutOfResources: shared memory"),
    ({LONG: {"ours": "no memory", "plain": "no memory"}}, None),
    ({LONG: {"inputs": "no memory"}}, None),
    ({ONE: {"ours": 1.0, "plain": "it cannot be recorded"}}, None),
    ({ONE: {"ours": 2.0, "plain": 5.0, "inductor": 0.5}}, None),
], ids=str)
def test_the_rule(told, reason):
    timings = tuple(racing.timing(bucket, told.get(bucket.name, racing.FAST)) for bucket in BUCKETS)
    assert WON_BACK == 128
    assert refusal(timings) == reason


def test_without_a_judge_the_prediction_decides(overlapping):
    graph, sites = overlapping
    assert settle(sites, graph, CPU) == (choose(sites, graph, CPU), {})


def test_what_is_faster_is_kept_and_only_that_is_timed(overlapping):
    reasons, pieces, verdicts = settled(overlapping, lambda fusion, bucket: racing.FAST)
    assert reasons["qk_norm_rope"] is None
    assert reasons["rope"].startswith("shares steps with qk_norm_rope")
    assert [p.captured.fusion for p in pieces] == ["qk_norm_rope"]
    assert [v.gain_us for v in verdicts.values()] == [3.0]


def test_smaller_fusions_take_over_the_steps_of_a_slower_one(overlapping):
    reasons, pieces, _ = settled(overlapping, lambda fusion, bucket:
                                 racing.SLOW if fusion == "qk_norm_rope" else racing.FAST)
    assert reasons == {"qk_norm_rope": "slower here: decode, 1 row: ours 5 us, plain steps 2 us", "rms_norm": None,
                       "rope": None}
    assert [p.captured.fusion for p in pieces] == list(PARTS)
    assert [p.smaller is not None for p in pieces] == [True, False, False]


def test_of_the_smaller_ones_the_slower_stay_plain_steps(overlapping):
    reasons, _, _ = settled(overlapping, lambda fusion, bucket: racing.FAST if fusion == "rope" else racing.SLOW)
    assert reasons["rope"] is None
    assert all(reasons[name].startswith("slower here: ") for name in ("qk_norm_rope", "rms_norm"))


def test_what_runs_in_the_place_of_a_site_gives_its_numbers(overlapping):
    """The steps with the smaller fusions in them are the same maths as the plain ones."""
    _, (piece,), _ = settled(overlapping, lambda fusion, bucket: racing.FAST)
    assert {str(n.target) for n in piece.smaller.nodes} >= {"glmc.rms_norm", "glmc.rope"}
    given = [torch.randn([int(s) for s in shape]) for _, shape in piece.captured.shapes.values()]
    smaller, plain = (runnable(graph, as_engine_fx("cpu"), torch.device("cpu"))(*given)
                      for graph in (piece.smaller, piece.captured.graph))
    torch.testing.assert_close(smaller, plain)


def test_sites_alike_are_timed_once_and_share_the_verdict():
    fusion = declare.load("silu_mul")
    tensors = traced.unseen(fusion, 0, 1).empty(0, torch.float32)
    graph = traced.graph_of(lambda gate, up: (fusion.reference(gate, up), fusion.reference(up, gate)), tensors, {})
    sites = traced.find(fusion, graph).sites
    judge, pieces = racing.judge(lambda fusion, bucket: racing.SLOW)
    decisions, verdicts = settle(sites, graph, CPU, judge=judge)
    assert [len(p.captured.places) for p in pieces] == [2]
    assert [d.reason for d in decisions] == [v.reason for v in verdicts.values()] * 2


def test_symbols_get_the_sizes_of_their_letters_and_others_are_told():
    graph = graph_of(traced.unseen(declare.load("attention"), 0, 2), torch.float32)
    sites = traced.find(declare.load("attention"), graph).sites
    seen = []
    judge, _ = racing.judge(lambda fusion, bucket: racing.FAST)
    measure = judge.measure
    judge = type(judge)(judge.buckets[:1], lambda piece, bucket, values: seen.append(values) or measure(piece, bucket, values))
    shape = sites[0].tensors["visible"].meta["val"].shape
    letters = {str(shape[0]): "B", str(shape[2]): "S", str(shape[3]): "L"}
    settle(sites, graph, CPU, judge=judge, letters=letters)
    assert [{letters[str(s)]: n for s, n in values.items()} for values in seen] == [
        {letter: judge.buckets[0].sizes[letter] for letter in "BSL"}]
    _, verdicts = settle(sites, graph, CPU, judge=judge, letters={k: v for k, v in letters.items() if v != "L"})
    (verdict,) = verdicts.values()
    assert (verdict.reason, verdict.gain_us) == (None, None)
    assert verdict.timings[0].reasons["inputs"].endswith("is none of the part's")


def test_inductor_that_is_faster_is_told_and_so_is_what_has_no_figure(overlapping):
    def script(fusion, bucket):
        return {"ours": 2.0, "plain": 5.0, "inductor": 1.5 if bucket.decode else "InductorError: no compiler"}

    _, _, verdicts = settled(overlapping, script)
    assert notes(verdicts) == [
        "qk_norm_rope: Inductor's code for the steps is faster, which an artefact cannot hold: decode, 1 row (1.5 us, ours 2); "
        "decode, 2 rows (1.5 us, ours 2)",
        "qk_norm_rope: not timed, Inductor: prefill, 64 tokens: InductorError: no compiler"]
    told = next(iter(verdicts.values())).to_json(1)["buckets"]
    assert [b["inductor_us"] for b in told] == [1.5, 1.5, None]
    assert told[2]["reasons"] == {"inductor": "InductorError: no compiler"}
