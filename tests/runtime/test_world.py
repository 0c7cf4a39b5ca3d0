"""What ranks say to each other: results, the same bits on each rank, and every difference found by every rank."""

from __future__ import annotations

import hashlib
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from threaded import together

from glmc.errors import NumericError, RankError, RequestOutOfBounds, UsageError
from glmc.runtime import broadcast, checksum
from glmc.runtime.envelope import Entry
from glmc.runtime.exchange import INLINE

SIZES = [(1,), (3, 5), (8, 512), (1000, 37), (0, 4), ()]


def ours(rank: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(rank)).mul(9).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64], ids=str)
@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("size", [2, 3])
def test_a_sum_has_the_same_bits_on_every_rank(size, shape, dtype):
    sums = together(size, lambda w: w.all_reduce(ours(w.rank, shape, dtype)))
    wide = torch.float64 if dtype.is_floating_point else dtype
    wanted = sum(ours(rank, shape, dtype).to(wide) for rank in range(size))
    assert all(torch.equal(one, sums[0]) for one in sums)
    assert sums[0].dtype == dtype
    torch.testing.assert_close(sums[0].to(wide), wanted, atol=0.2 if dtype == torch.bfloat16 else 1e-4, rtol=1e-2)


@pytest.mark.parametrize(("shape", "dim"), [((3, 5), 0), ((3, 5), 1), ((300, 41), 1), ((2, 1, 4), -1)], ids=str)
@pytest.mark.parametrize("size", [2, 3])
def test_parts_stand_in_the_order_of_ranks(size, shape, dim):
    made = together(size, lambda w: w.all_gather(ours(w.rank, shape, torch.float32).transpose(0, 1).transpose(0, 1), dim))
    wanted = torch.cat([ours(rank, shape, torch.float32) for rank in range(size)], dim)
    assert all(torch.equal(one, wanted) for one in made)


def test_a_tensor_that_is_not_contiguous_is_read_in_its_order():
    made = together(2, lambda w: w.all_reduce(torch.arange(6).view(2, 3).t() + w.rank))
    assert torch.equal(made[0], torch.arange(6).view(2, 3).t() * 2 + 1)


TENSORS = {"ids": torch.arange(7), "empty": torch.zeros(0, 3), "scalar": torch.tensor(4.5), "half": torch.ones(3, 2).bfloat16(),
           "flags": torch.tensor([True, False])}


@pytest.mark.parametrize("more", [0, INLINE, 9 << 20], ids=["in a frame", "in a piece", "in pieces"])
@pytest.mark.parametrize("size", [2, 3])
def test_named_tensors_arrive_as_they_were(size, more):
    sent = {**TENSORS, **({"large": torch.randn(more // 4 + 3)} if more else {})}
    def work(w):
        return w.main_then_broadcast("s", (lambda: sent) if w.rank == 0 else pytest.fail)

    for got in together(size, work):
        assert list(got) == list(sent)
        assert all(torch.equal(got[n], sent[n]) and got[n].dtype == sent[n].dtype for n in sent)


@pytest.mark.parametrize(("error", "kind"), [
    (RequestOutOfBounds("too long", field="prompt"), RequestOutOfBounds), (NumericError("not finite"), NumericError),
    (ValueError("boom"), RankError), (MemoryError(), RankError)], ids=str)
@pytest.mark.parametrize("size", [2, 3])
def test_what_is_raised_on_the_main_rank_is_raised_on_all(size, error, kind):
    def run():
        raise error

    faults = together(size, lambda w: w.main_then_broadcast("reading", run))
    assert [type(fault) for fault in faults] == [kind] * size
    assert len({str(fault) for fault in faults}) == 1
    assert "rank 0, stage 'reading'" in str(faults[0])
    assert all(getattr(fault, "field", None) == getattr(error, "field", None) for fault in faults)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_not_sent(value):
    made = torch.ones(5000)
    made[1234] = value
    faults = together(2, lambda w: w.main_then_broadcast("s", lambda: {"fine": torch.ones(2), "latents": made}))
    assert all(type(fault) is NumericError and fault.field == "latents" for fault in faults)
    for got in together(2, lambda w: w.main_then_broadcast("s", lambda: {"latents": made}, ("latents",))):
        assert torch.equal(got["latents"], made) or value != value
    huge = torch.full((9,), torch.finfo(torch.float32).max)  # finite, although its sum is not
    assert torch.equal(together(2, lambda w: w.main_then_broadcast("s", lambda: {"x": huge}))[1]["x"], huge)


@pytest.mark.parametrize("count", [2, 5000])
def test_what_changes_on_its_way_is_not_used(count, monkeypatch):
    real, whole = broadcast._begin, broadcast._swap

    def begin(group, piece):
        return real(group, piece.clone().fill_(7) if group.rank == 0 else piece)

    def swap(group, head, body):
        return whole(group, head, body[:-1] + b"!" if body and count == 2 else body)

    monkeypatch.setattr(broadcast, "_begin", begin)
    monkeypatch.setattr(broadcast, "_swap", swap)
    fault = together(2, lambda w: w.main_then_broadcast("s", lambda: {"x": torch.ones(count)}))[1]
    assert isinstance(fault, RankError)
    assert "does not agree with its digest" in str(fault)


def test_a_list_that_does_not_agree_with_the_bytes_is_refused(monkeypatch):
    real = broadcast.encode_manifest
    monkeypatch.setattr(broadcast, "encode_manifest", lambda entries: real([*entries, Entry("more", "uint8", (9,))]))
    fault = together(2, lambda w: w.main_then_broadcast("s", lambda: {"x": torch.ones(2)}))[1]
    assert "list does not agree with its length" in str(fault)


def test_sums_of_sixteen_bits_are_rounded_once():
    parts = [256.0, 1.0, 1.0]
    for found in together(3, lambda w: (w.enter("a"), w.all_reduce(torch.tensor([parts[w.rank]], dtype=torch.bfloat16)))[1]):
        assert float(found) == 258.0  # 256 + 1 is 256 in bfloat16


@pytest.mark.parametrize("made", [{"x": torch.zeros(2, dtype=torch.complex64)}, {"": torch.zeros(2)}, None], ids=range(3))
def test_what_cannot_be_sent_is_an_error_everywhere(made):
    assert all(isinstance(fault, RankError) for fault in together(2, lambda w: w.main_then_broadcast("s", lambda: made)))


def reduce(*shape: int, dtype: torch.dtype = torch.float32):
    def work(w):
        w.enter("a")
        return w.all_reduce(torch.ones(shape, dtype=dtype))

    return work


DIFFERENT = {
    "shape": (reduce(2, 3), reduce(3, 2)),
    "smaller": (reduce(100_000), reduce(2)),
    "larger": (reduce(2), reduce(100_000)),
    "dtype": (reduce(2), reduce(2, dtype=torch.int32)),
    "operation": (reduce(2), lambda w: w.main_then_broadcast("a", dict)),
    "stage": (lambda w: w.main_then_broadcast("a", dict), lambda w: w.main_then_broadcast("b", dict)),
    "broadcast": (lambda w: w.main_then_broadcast("a", dict), reduce(2)),
    "receives more": (lambda w: w.main_then_broadcast("a", lambda: {"x": torch.ones(99999)}), reduce(99999)),
    "tokens": (lambda w: w.same("a", torch.tensor([1])), lambda w: w.same("a", torch.tensor([2]))),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_ranks_at_different_calls_are_refused(case):
    faults = together(2, *DIFFERENT[case])
    assert all(type(fault) is RankError and fault.fault.ranks == (0, 1) for fault in faults), faults
    assert "rank 0" in str(faults[0])
    assert "rank 1" in str(faults[0])


@pytest.mark.parametrize("culprit", range(3))
def test_of_three_the_one_that_differs_is_named(culprit):
    works = [reduce(2, 3), reduce(2, 3), reduce(2, 3)]
    works[culprit] = reduce(3, 2)
    assert all(fault.fault.ranks == (culprit,) for fault in together(3, *works))


@pytest.mark.parametrize("culprit", range(2))
def test_a_rank_that_leaves_out_a_call_is_named(culprit):
    def steps(w):
        for step in range(3):
            w.enter(f"decode {step}")
            for layer in range(2):
                if (w.rank, step, layer) != (culprit, 1, 0):
                    w.all_reduce(torch.ones(4))

    faults = together(2, steps)
    assert all(type(fault) is RankError and fault.fault.ranks == (culprit,) for fault in faults), faults


def test_a_stage_that_the_main_rank_swallowed_gives_no_stale_tensor():
    def main(w):
        w.enter("one")  # it failed here, and goes on
        return w.main_then_broadcast("two", lambda: {"x": torch.ones(2)})

    faults = together(2, main, lambda w: w.main_then_broadcast("one", dict))
    assert all(type(fault) is RankError and fault.fault.ranks == (0,) for fault in faults), faults


def raw(w, tensor):
    """gloo's own broadcast from rank 0, as it would be without a header."""
    options = torch.distributed.BroadcastOptions()
    options.rootRank = options.rootTensor = 0
    w.exchange.group.broadcast([tensor], options).wait()
    return tensor


@pytest.mark.parametrize("case", ["dtype", "larger", "skipped"])
def test_gloo_by_itself_gives_wrong_data_without_an_error(case):
    """What the headers are for: if this fails, gloo has learnt to check."""
    def work(w):
        if case == "dtype":
            return raw(w, torch.ones(2) if w.rank == 0 else torch.zeros(2, dtype=torch.int32))
        if case == "larger":
            return raw(w, torch.ones(2) if w.rank == 0 else torch.zeros(4))
        if w.rank == 0:  # swallows the error of its first stage, and goes on with the second
            return raw(w, torch.full((2,), 2.0))
        return raw(w, torch.zeros(2))

    got = together(2, work)[1]
    assert got.tolist() == {"dtype": [0x3F800000] * 2, "larger": [1, 1, 0, 0], "skipped": [2, 2]}[case]


FACTS = {"artifact": "abc", "torch": "2.13", "seed": "1"}


@pytest.mark.parametrize("name", [*FACTS, "another"])
def test_ranks_that_hold_other_facts_are_refused(name):
    other = {**FACTS, name: "else"}
    assert together(2, lambda w: w.agree(FACTS)) == [None, None]
    for fault in together(3, lambda w: w.agree(FACTS), lambda w: w.agree(FACTS), lambda w: w.agree(other)):
        assert type(fault) is RankError
        assert fault.fault.ranks == (2,)
        assert fault.field == name
        assert f"rank 0: {FACTS.get(name)}" in fault.found
        assert "rank 2: else" in fault.found


def test_a_rank_that_fails_tells_the_others_why():
    def fails(w):
        raise w.fail(NumericError("a logit is not finite", field="logits"))

    faults = together(3, lambda w: w.all_reduce(torch.ones(2)), fails, lambda w: w.all_reduce(torch.ones(2)))
    assert all(type(fault) is NumericError and fault.fault.ranks == (1,) for fault in faults), faults


def test_a_rank_that_does_not_come_is_named_at_the_deadline():
    faults = together(3, lambda w: w.same("a"), lambda w: w.same("a"), lambda w: None, deadline=1.0)
    assert "within the deadline of 1 s" in str(faults[0])
    assert faults[0].fault.ranks == (2,)


def test_a_dead_link_to_the_notes_is_no_wait_without_end():
    """The store lies on another host: where the link to it is cut, its calls never return."""
    def works(w):
        w.exchange.store = SimpleNamespace(check=lambda _: threading.Event().wait(), set=lambda *_: threading.Event().wait())
        return w.all_reduce(torch.ones(2)) if w.rank == 0 else threading.Event().wait(4)

    fault = together(2, works, deadline=0.5)[0]
    assert "within the deadline of 0.5 s" in str(fault)


def grid(w):
    made = w.groups(cfg=2, sequence=2)
    halves = made["cfg"].all_reduce(torch.tensor([float(w.rank)]))
    parts = made["sequence"].all_gather(torch.tensor([w.rank]), 0)
    sent = made["cfg"].main_then_broadcast("s", lambda: {"x": torch.tensor(w.rank)})
    return float(halves), parts.tolist(), int(sent["x"]), made["cfg"].rank, made["sequence"].size


def test_a_world_is_taken_apart_into_groups():
    assert together(4, grid) == [(2.0, [0, 1], 0, 0, 2), (4.0, [0, 1], 0, 0, 2), (2.0, [2, 3], 0, 1, 2), (4.0, [2, 3], 0, 1, 2)]
    assert all(isinstance(fault, UsageError) for fault in together(2, lambda w: w.groups(cfg=2, sequence=2)))


def test_no_pickle_is_read():
    found = []
    sys.addaudithook(lambda event, _: found.append(event) if event == "pickle.find_class" else None)
    together(2, lambda w: (w.agree(FACTS), w.main_then_broadcast("s", lambda: TENSORS), w.all_reduce(torch.ones(9)), w.close()))
    assert not found


def test_a_checksum_sees_order_and_every_bit():
    data = torch.randint(0, 256, (3 * checksum.SMALL + 5,), dtype=torch.uint8)
    known = {checksum.digest(data)}
    for at in (0, 7, checksum.BLOCK, len(data) - 1):
        hurt = data.clone()
        hurt[at] ^= 16
        known.add(checksum.digest(hurt))
    known.add(checksum.digest(data.roll(checksum.BLOCK)))
    known.add(checksum.digest(data[:-1]))
    assert len(known) == 7
    assert checksum.digest(data[:100]) == hashlib.blake2b(data[:100].numpy().tobytes(), digest_size=16).digest()
