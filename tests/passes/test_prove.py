"""The numeric proof: kernels that are right pass, kernels that are a little wrong do not."""

from __future__ import annotations

import pytest
import torch
import traced

from glmc import kernels
from glmc.errors import NumericError
from glmc.passes import declare
from glmc.passes.prove import prove
from glmc.target import named

CPU = named("cpu")


def site_of(name, dtype=torch.float32, which=1):
    fusion = declare.load(name)
    graph = traced.graph_of(fusion.reference, traced.normal(fusion, traced.SIZES[which], dtype), traced.scalars(fusion))
    (site,) = traced.find(fusion, graph).sites
    return site


@pytest.mark.parametrize("name", declare.names())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_kernel_is_proved(name, dtype):
    (proof,) = prove([site_of(name, dtype)], CPU)
    assert proof.kernel_error <= 2 * proof.reference_error + torch.finfo(dtype).eps
    assert set(proof.shapes) == set(declare.load(name).tensors)
    assert proof.scalars == traced.scalars(declare.load(name))


def test_equal_sites_are_proved_once_and_counted():
    proofs = prove([site_of("rms_norm"), site_of("silu_mul"), site_of("rms_norm"), site_of("rms_norm", which=2)], CPU)
    assert sorted((p.fusion, p.places) for p in proofs) == [("rms_norm", 1), ("rms_norm", 2), ("silu_mul", 1)]


def scaled(right):
    return lambda *args, **kw: tuple(r * (1 + 1e-4) for r in right(*args, **kw)) if isinstance(
        right(*args, **kw), tuple) else right(*args, **kw) * (1 + 1e-4)


def other_eps(right):
    return lambda *args, eps: right(*args, eps=eps + 1e-4)


def first_half_of_sin(right):
    def run(x, cos, sin):
        half = sin[..., : sin.shape[-1] // 2]
        return right(x, cos, torch.cat([half, half], -1))

    return run


def keeps_nothing(right):
    return lambda x, cos, sin: torch.cat([right(x, cos, sin)[..., : cos.shape[-1]], 0 * x[..., cos.shape[-1]:]], -1)


def poisoned(right):
    return lambda *args, **kw: right(*args, **kw) * float("nan")


@pytest.mark.parametrize(("name", "wrong"), [
    *((name, scaled) for name in declare.names()), ("rms_norm", other_eps), ("add_rms_norm", other_eps),
    ("rope_half", first_half_of_sin), ("rope_half", keeps_nothing), ("rope_pairs", keeps_nothing),
    ("silu_mul", poisoned)])
def test_a_wrong_kernel_is_refused(monkeypatch, name, wrong):
    site, module = site_of(name), kernels.load(name, "cpu")
    monkeypatch.setattr(module, "run", wrong(module.run))
    with pytest.raises(NumericError, match=f"kernel of {name}"):
        prove([site], CPU)
