"""The proof of the native lowering finds what is wrong with it: a changed call, a changed form, a wrong weight."""

from __future__ import annotations

import dataclasses

import models
import pytest
import torch

from glmc.errors import NumericError, UnsupportedTarget
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


@pytest.mark.parametrize("quant", [None, "int8", "int4"])
def test_a_mistake_in_packing_is_found(program, quant, monkeypatch):
    pack = panels._pack
    monkeypatch.setattr(panels, "_pack", lambda p, form, out: pack(p.flip(1), form, out))
    unpack = panels.unpack
    monkeypatch.setattr(proving.Keep, "plain", lambda self, t: _unflipped(self, t, unpack))
    with pytest.raises(NumericError):
        proving.prove_native(program, keeping.forms(program, quant))


def _unflipped(keep, tensor, unpack):
    """What the weight would be if the rows of a panel had been packed in their order."""
    if not keep.packed:
        return tensor.to(getattr(torch, keep.dtype))
    whole = unpack(tensor, keep.form, keep.sizes, keep.halves)
    return whole.flip(-2).to(getattr(torch, keep.dtype))


def test_a_large_layer_is_proved_with_fewer_experts_and_says_so(program, monkeypatch):
    keeps = keeping.forms(program, None)
    monkeypatch.setattr(proving, "_MOST", 40_000)
    proofs = {p.region: p.note for p in proving.prove_native(program, keeps)}
    assert "with 6 experts of 8" in proofs.values()
    monkeypatch.setattr(proving, "_MOST", 100)
    assert all("not replayed" in p.note for p in proving.prove_native(program, keeps))


def test_a_region_that_no_kernel_runs_is_refused_by_name(program):
    region = next(r for r in program.regions.values() if r.kind == "head")
    strange = dataclasses.replace(region, body=("exp = aten.exp.default(x)", *region.body))
    with pytest.raises(UnsupportedTarget, match=r"aten\.exp\.default") as fault:
        keeping.forms(Program({strange.name: strange}, program.steps[-1:], program.logits), None)
    assert "cpu:aoti" in fault.value.hint
