"""The proof of the native lowering finds what is wrong with it: a changed call, a changed form, a wrong weight."""

from __future__ import annotations

import dataclasses

import models
import pytest

from glmc.errors import InternalError, NumericError, UnsupportedTarget
from glmc.native import keep as keeping
from glmc.native import panels
from glmc.native.lower import lowered
from glmc.passes import prove_native as proving
from glmc.program import Program
from glmc.survey import survey
from glmc.target import named


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def program(request):
    _, _, checkpoint = models.published("glm4_moe", request.param)
    return survey(checkpoint, named("cpu"), "auto").program


def test_every_distinct_region_is_proved(program):
    proofs = proving.prove_native(program, keeping.forms(program, None))
    assert [p.region for p in proofs] == list(dict.fromkeys(s.region for s in program.steps))
    assert all(0 < p.native_error <= p.limit for p in proofs if p.region.startswith("layer"))


def changed(kernel: str, change):
    """`lowered` with every call of a kernel changed."""
    def again(region):
        found = lowered(region)
        for call in found.calls:
            if call.kernel == kernel:
                change(call)
        return found
    return again


MISTAKES = {
    "eps": ("rms_norm", lambda c: c.f.__setitem__(0, 0.3)),
    "read": ("split_qkv_norm_rope", lambda c: c.n.__setitem__(7, -1)),
    "write": ("split_qkv_norm_rope", lambda c: c.n.__setitem__(8, -1)),
    "norm eps": ("split_qkv_norm_rope", lambda c: c.f.__setitem__(0, 0.3)),
    "no q norm": ("split_qkv_norm_rope", lambda c: c.p.__setitem__(3, None)),
    "k norm for q": ("split_qkv_norm_rope", lambda c: c.p.__setitem__(3, c.p[4])),
    "sin for cos": ("split_qkv_norm_rope", lambda c: c.p.__setitem__(1, c.p[2])),
    "scale": ("attention", lambda c: c.f.__setitem__(0, 0.3)),
    "values for keys": ("attention", lambda c: c.p.__setitem__(1, c.p[2])),
    "no residual": ("linear", lambda c: c.p.__setitem__(4, None)),
    "no bias": ("linear", lambda c: c.p.__setitem__(2, None)),
    "routing scale": ("moe_route", lambda c: c.f.__setitem__(0, 1.0)),
    "not normalised": ("moe_route", lambda c: c.n.__setitem__(4, 0)),
    "no groups": ("moe_route", lambda c: c.n.__setitem__(2, c.n[1])),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_call_is_found(program, mistake, monkeypatch):
    kernel, change = MISTAKES[mistake]
    monkeypatch.setattr("glmc.native.alone.lowered", changed(kernel, change))
    with pytest.raises(NumericError, match="not the equal of its text"):
        proving.prove_native(program, keeping.forms(program, None))


def kept(program, quant):
    """Forms for `--quant`, or where that names a checkpoint's form for a checkpoint that has every matrix so."""
    if quant not in panels.CODED:
        return keeping.forms(program, quant)
    return keeping.forms(program, None, dict.fromkeys(keeping.forms(program, None), quant))


@pytest.mark.parametrize("quant", [None, "int8", "int4", *panels.CODED])
def test_rows_of_a_panel_in_another_order_are_found(program, quant, monkeypatch):
    held = proving.Keep.held
    monkeypatch.setattr(proving.Keep, "held", lambda self, t: held(self, t).roll(1, -2) if self.packed else held(self, t))
    with pytest.raises(NumericError):
        proving.prove_native(program, kept(program, quant))


@pytest.mark.parametrize("form", panels.CODED)
def test_matrices_of_a_quantised_checkpoint_are_proved(program, form):
    """In float32 as exactly as others; in bfloat16 with what rounded activations cost, where the form rounds them."""
    keeps = kept(program, form)
    exact = all(k.exact for k in keeps.values() if k.form == form)
    for proof in proving.prove_native(program, keeps):
        mine = [keeps[name] for name in weights_of(program, proof.region)]
        rounds = any(k.form == form for k in mine) and not exact and form != "F8"
        assert rounds == any(k.rounds for k in mine)
        assert proof.limit == proving.FLOAT32 if exact else not rounds or proof.limit > proving.QUANTISED
        assert proof.native_error <= proof.limit


def weights_of(program, region):
    step = next(s for s in program.steps if s.region == region)
    return {name.removeprefix("weight:") for name in step.inputs if name.startswith("weight:")}


def test_only_matrices_are_kept_as_the_checkpoint_has_them(program):
    plain = keeping.forms(program, None)
    everything = dict.fromkeys(plain, "MX4")
    found = keeping.forms(program, None, everything)
    for name, keep in found.items():
        matrix = plain[name].packed and not name.endswith("mlp.gate.weight")
        assert keep == (dataclasses.replace(plain[name], form="MX4") if matrix else plain[name])
        assert keep.exact == (matrix and keep.dtype == "float32")
    assert keeping.coded(found) == {n: "MX4" for n, k in found.items() if k.form == "MX4"}
    assert keeping.forms(program, "int8", everything) == keeping.forms(program, "int8"), "what is quantised anew"
    assert keeping.Keep.from_json(next(iter(found.values())).to_json()) == next(iter(found.values()))
    with pytest.raises(InternalError, match="unknown form"):
        keeping.forms(program, None, {"w": "Q8"})


def test_a_large_layer_is_proved_with_fewer_experts_and_says_so(program, monkeypatch):
    keeps = keeping.forms(program, None)
    monkeypatch.setattr(proving, "MOST", 40_000)
    proofs = {p.region: p.note for p in proving.prove_native(program, keeps)}
    assert "with 6 experts of 8" in proofs.values()
    monkeypatch.setattr(proving, "MOST", 100)
    assert all("not replayed" in p.note for p in proving.prove_native(program, keeps))


def test_a_region_that_no_kernel_runs_is_refused_by_name(program):
    region = next(r for r in program.regions.values() if r.kind == "head")
    strange = dataclasses.replace(region, body=("exp = aten.exp.default(x)", *region.body))
    with pytest.raises(UnsupportedTarget, match=r"aten\.exp\.default") as fault:
        keeping.forms(Program({strange.name: strange}, program.steps[-1:], program.logits), None)
    assert "cpu:aoti" in fault.value.hint
