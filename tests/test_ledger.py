"""The ledger: promises against proofs, by scope."""

from __future__ import annotations

import json

import pytest

from glmc.errors import PromiseBroken
from glmc.ledger import Ledger, scope_of

PROMISES = {"model": {"rms_norm": 1}, "layers.0": {"rms_norm": 2, "silu_mul": 1, "rope": 0},
            "layers.1": {"rms_norm": 2}}
KEPT = ["norm", "layers.0.input_layernorm", "layers.0.post", "layers.1.input_layernorm", "layers.1.post"]


@pytest.mark.parametrize(("place", "scope"), [
    ("model.layers.7.mlp", "layers.7"), ("layers.12", "layers.12"), ("norm", "model"), ("", "model"),
    ("visual.blocks.3.attn", "visual.blocks.3"), ("visual.merger", "visual"),
    ("transformer.transformer_blocks.0", "transformer.transformer_blocks.0"), ("playerslayers.3x", "model")])
def test_the_scope_of_a_place(place, scope):
    assert scope_of(place) == scope


def made(norms=KEPT, gates=("layers.0.mlp",)):
    ledger = Ledger()
    ledger.expect(PROMISES)
    ledger.prove("rms_norm", norms)
    ledger.prove("silu_mul", gates)
    return ledger


def test_promises_that_are_kept_pass():
    ledger = made()
    ledger.check({})
    assert ledger.demand("the plan") == "the plan"
    assert ledger.surplus() == []
    assert "rope" not in ledger.rows, "a promise of none is no row"


def test_a_broken_promise_names_layer_fusion_and_nearest_miss():
    ledger = made(norms=[p for p in KEPT if p != "layers.1.post"])
    ledger.check({"rms_norm": {"layers.1": "THE MISS"}})
    with pytest.raises(PromiseBroken) as fault:
        ledger.demand("the plan")
    assert fault.value.finished == "the plan", "what was made is not lost"
    text = str(fault.value)
    assert "layers.1" in text
    assert "rms_norm" in text
    assert "THE MISS" in text
    assert fault.value.exit == 3


def test_a_site_elsewhere_does_not_make_up_for_one_that_lacks():
    ledger = made(norms=[*KEPT[:-1], "layers.0.third"])
    ledger.check({})
    assert [b.split()[0] for b in ledger.broken] == ["layers.1"]


def test_many_broken_promises_are_counted():
    ledger = Ledger()
    ledger.expect({f"layers.{i}": {"rms_norm": 1} for i in range(9)})
    ledger.check({})
    with pytest.raises(PromiseBroken, match="and 5 more"):
        ledger.demand(None)


def test_more_than_promised_is_a_note():
    ledger = made(norms=[*KEPT, "layers.1.third", "elsewhere"])
    ledger.check({})
    assert sorted(ledger.surplus()) == ["rms_norm: layers.1 proved 3, promised 2",
                                        "rms_norm: model proved 2, promised 1"]


def test_its_json_is_sorted_and_whole():
    rows = json.loads(json.dumps(made().to_json()))
    assert [r["fusion"] for r in rows] == ["rms_norm", "silu_mul"]
    assert {"fusion", "expected", "proved", "taken", "refused", "predicted_us", "measured_us"} <= set(rows[0])
    assert (rows[0]["expected"], rows[0]["proved"]) == (5, 5)
