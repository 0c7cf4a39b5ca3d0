"""What is timed at a site: every contender runs, they give one result, and one that fails says why."""

from __future__ import annotations

import contextlib
import json

import proving
import pytest
import racing
import torch
import traced

from glmc import gpu, kernels
from glmc.kernels import timing, triton
from glmc.passes import contenders, declare
from glmc.passes.ahead import Built
from glmc.passes.contenders import Race, inputs, judge_for, said
from glmc.passes.faster import Bucket, Piece
from glmc.passes.hostile import assign
from glmc.passes.lower import Bounds
from glmc.passes.prove import capture
from glmc.target import TARGETS, named

BUCKET = Bucket("some", {"B": 3, "S": 5, "L": 7})
BOTH = [(name, target) for name in declare.names() for target in ("fx", "cuda:sm_90")
        if kernels.has(name, named(target).machine)]


def piece_of(name):
    """A distinct site of a fusion, and the value of each of its symbols.

    Experts are bfloat16 and their rows a multiple of 16 bytes: torch has no other grouped product.
    """
    captured = proving.captured(name)[0]
    if name == "moe_experts":
        sizes = {"T": 5, "H": 16, "E": 6, "K": 2, "I": 8, "J": 16}
        graph = proving.graph_of(declare.Maths(declare.load(name).reference, (sizes,)), torch.bfloat16)
        (captured,) = capture(traced.find(declare.load(name), graph).sites)
    return Piece(captured, None), assign(captured.shapes, captured.outputs, "odd", captured.scalars.get("top", 0))


def raced(name, target="fx", clock=None, backend="eager", built=None):
    piece, values = piece_of(name)
    machine = named(target)
    clock = clock or racing.Wall()
    with kernels.checking(machine.machine):
        return Race(machine, clock, backend, built)(piece, BUCKET, values), clock


def same(one, other):
    """Equal but for roundings, beside the largest value."""
    step = 1e-5 if one.dtype is torch.float32 else 2e-2
    torch.testing.assert_close(one, other, rtol=0.0, atol=step * max(1.0, float(other.abs().max())))


@pytest.mark.parametrize(("name", "target"), BOTH)
def test_every_contender_runs_and_they_agree(name, target):
    made, clock = raced(name, target)
    assert made.reasons == {}
    assert list(made.figures) == ["ours", "plain", "inductor"]
    assert all(f.us > 0 and f.spread_us >= 0 for f in made.figures.values())
    assert clock.recovered == 1
    ours, plain, compiled = clock.results
    chooses = any(not r.is_floating_point() for r in plain)  # experts and slots come in no set order
    for mine, steps, other in zip(ours, plain, compiled, strict=True):
        assert (mine.shape, mine.dtype) == (steps.shape, steps.dtype) == (other.shape, other.dtype)
        mine, steps, other = (t.sort(-1).values if chooses else t for t in (mine, steps, other))
        same(mine, steps)
        same(other, steps)


@pytest.mark.slow
def test_inductor_itself_compiles_the_steps():
    made, clock = raced("moe_experts", backend="inductor")
    assert made.reasons == {}
    same(clock.results[2][0], clock.results[1][0])


def test_calls_go_round_as_many_sets_as_the_clock_wants():
    _, once = raced("rms_norm")
    _, often = raced("rms_norm", clock=racing.Wall(sets=3))
    assert torch.equal(once.results[0][0], raced("rms_norm")[1].results[0][0]), "inputs are drawn from seeds"
    assert not torch.equal(once.results[0][0], often.results[0][0])


class Failing(racing.Wall):
    """A clock under which the nth contender fails."""

    def __init__(self, which, lost=False):
        super().__init__()
        self.calls, self.which, self.lost = 0, which, lost

    def __call__(self, call, inputs):
        self.calls += 1
        if self.calls == self.which + 1:
            raise RuntimeError("the first line of /some/folder/kernel.py:3 failed\nand the second")
        return super().__call__(call, inputs)

    def recover(self):
        if self.lost:
            raise RuntimeError("the device is lost")


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_contender_that_fails_says_why_and_the_others_are_timed(which):
    made, _ = raced("silu_mul", clock=Failing(which))
    names = ["ours", "plain", "inductor"]
    assert made.reasons == {names.pop(which): "RuntimeError: the first line of kernel.py:3 failed"}
    assert list(made.figures) == names


def test_a_lost_device_is_no_reason_to_refuse_a_fusion():
    with pytest.raises(RuntimeError, match="the device is lost"):
        raced("silu_mul", clock=Failing(0, lost=True))


def test_inputs_that_do_not_fit_are_told(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(contenders, "inputs", full)
    made, clock = raced("silu_mul")
    assert (made.figures, list(made.reasons), clock.recovered) == ({}, ["inputs"], 1)


def test_inductor_has_so_much_time_and_no_more(monkeypatch):
    monkeypatch.setattr(contenders, "INDUCTOR_SECONDS", -1.0)
    made, _ = raced("silu_mul")
    assert list(made.figures) == ["ours", "plain"]
    assert "s already" in made.reasons["inductor"]


def test_inputs_are_as_in_a_running_model():
    (attention, values), cpu = piece_of("attention"), torch.device("cpu")
    drawn = inputs(attention.captured, values, cpu, 0)
    seen = drawn["visible"]
    assert bool(seen[0, 0, -1].all())
    assert int((~seen[0, 0, 0]).sum()) == seen.shape[-2] - 1, "the first new token sees all but the new ones after it"
    experts, values = piece_of("moe_experts")
    drawn = inputs(experts.captured, values, cpu, 0)
    chosen = drawn["experts"].sort(-1).values
    assert 0 <= int(chosen.min()) <= int(chosen.max()) < drawn["down"].shape[0]
    assert bool((chosen[:, 1:] > chosen[:, :-1]).all()), "a token's experts are distinct"
    written, values = piece_of("split_qkv_norm_rope")
    drawn = inputs(written.captured, values, cpu, 0)
    slots = drawn["slots"]
    assert bool((slots[:, 1:] > slots[:, :-1]).all())
    assert int(slots.max()) < drawn["keys"].shape[1]
    for name, (dtype, _) in written.captured.shapes.items():
        assert drawn[name].dtype is dtype


def test_a_fault_is_told_in_one_line_without_folders():
    assert said(ValueError("cc: /usr/lib/x/y.so: not found\nmore")) == "ValueError: cc: y.so: not found"
    assert said(KeyError()) == "KeyError: "
    assert said(ValueError("dynamo failed\n  Why: in x(y): got TypeError('of (z)')\n  Hint: no")) == \
        "ValueError: TypeError('of (z)')"
    assert len(said(ValueError("x" * 1000))) < 250


def test_the_median_and_the_quartiles():
    assert timing.figure([4.0, 1.0, 2.0, 3.0, 100.0]) == timing.Figure(3.0, 2.0)


GPU = named("cuda:sm_90")


class Noting:
    """In the place of built kernels: the names of those that would be."""

    def __init__(self):
        self.names = []

    def ahead(self, call):
        with triton.noted() as notes, torch.device("meta"):
            call()
        self.names.append({asked.name for asked in notes})

    def starting(self):
        return contextlib.nullcontext()


@pytest.mark.parametrize("name", [name for name, target in BOTH if target == GPU.name])
def test_what_a_contender_starts_is_known_before_it_is_timed(name):
    built = Noting()
    made, _ = raced(name, GPU.name, built=built)
    assert made.reasons == {}
    ours, plain = built.names
    assert ours or name in ("attention", "latent_attention"), "many new tokens are torch's"
    assert {k for k in plain if not k.startswith("linear")} == ({"grouped_mm_kernel"} if name == "moe_experts" else set())


def test_kernels_are_timed_as_an_artefact_holds_them():
    built = Built(GPU.gpu)
    made, _ = raced("rms_norm", GPU.name, built=built)
    assert set(made.figures) == {"ours", "plain", "inductor"}
    ((description, binary),) = built._files.values()
    assert binary.read_bytes()[:4] == b"\x7fELF"
    assert json.loads(description.read_text())["name"] == "rms_norm_kernel"


@pytest.fixture
def asked(monkeypatch):
    """GLMC_TIMING as it is by default, and a GPU that torch believes in."""
    monkeypatch.delenv("GLMC_TIMING", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(gpu, "name_of", lambda number: GPU.name)


def test_the_knob_switches_it_off(asked, monkeypatch):
    monkeypatch.setenv("GLMC_TIMING", "0")
    assert judge_for(GPU, Bounds(1, 8)) == "GLMC_TIMING=0"


def test_without_a_gpu_there_is_no_judge(asked, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert judge_for(GPU, Bounds(1, 8)) == "torch sees no GPU here"


@pytest.mark.parametrize("name", [n for n, t in TARGETS.items() if t.gpu and t is not GPU])
def test_another_gpu_than_the_targets_times_nothing(asked, name):
    assert judge_for(named(name), Bounds(1, 8)) == "the GPU here is cuda:sm_90"


class Device(racing.Wall):
    def __init__(self, device):
        super().__init__()


def test_a_gpu_on_which_no_kernel_starts_times_nothing(asked, monkeypatch):
    monkeypatch.setattr(contenders, "GpuClock", Device)
    assert judge_for(GPU, Bounds(1, 8)).startswith("no kernel starts here: UsageError: a Triton kernel runs on a GPU")


def test_the_gpu_of_the_target_is_asked(asked, monkeypatch):
    monkeypatch.setattr(contenders, "GpuClock", Device)
    with kernels.checking("triton"):
        judge = judge_for(GPU, Bounds(2, 8))
    assert [b.name for b in judge.buckets] == ["decode, 1 row", "decode, 2 rows", "prefill, 8 tokens", "image, 32 patches",
                                               "picture, 32 x 32", "picture, 64 x 64"]
    assert isinstance(judge.measure, Race)
