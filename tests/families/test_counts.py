"""What families promise is exactly what a tiny model of theirs has: nothing fewer, nothing more."""

from __future__ import annotations

import json

import pytest

from glmc import families
from glmc.families.counts import decoder, grouped_attention, mlp, residual, total
from glmc.survey import survey
from glmc.target import named

CASES = (("glm4_moe", {}), ("glm4_moe", {"use_qk_norm": False}), ("glm4_moe", {"first_k_dense_replace": 2}), ("glm4", {}),
         ("glm", {}))


def surveyed(tmp_path, family, changes):
    config = {**families.load({"model_type": family}).TINY, **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return survey(tmp_path, named("fx"), "float32")


@pytest.mark.parametrize(("family", "changes"), CASES, ids=lambda c: c if isinstance(c, str) else "-".join(c))
def test_expected_is_proved_and_nothing_more(tmp_path, family, changes):
    ledger = surveyed(tmp_path, family, changes).ledger
    assert ledger.rows
    for row in ledger.rows.values():
        assert row.expected == row.proved, row.fusion
    assert ledger.surplus() == []


def test_counts_add_up():
    assert total({"a": 1, "b": 2}, {"b": 3}) == {"a": 1, "b": 5}
    assert residual(2, first=True)["add_rms_norm"] + 1 == residual(2, first=False)["add_rms_norm"]
    assert "qk_norm_rope" not in grouped_attention(False)
    dims = families.load({"model_type": "glm4_moe"}).read(families.load({"model_type": "glm4_moe"}).TINY)
    made = decoder(dims, grouped_attention(True))
    routed = [scope for scope, counts in made.items() if "moe_experts" in counts]
    assert routed == [f"layers.{i}" for i in range(dims.dense_layers, dims.layers)]
    assert mlp(False) == {"silu_mul": 1}


def test_the_gate_comes_before_the_up_projection():
    family = families.load({"model_type": "glm4_moe"})
    dims = family.read(family.TINY)
    names = family.recipe("model.layers.1.mlp.experts.gate_up_proj", dims).names()
    assert names == [f"model.layers.1.mlp.experts.{e}.{part}_proj.weight" for e in range(dims.experts)
                     for part in ("gate", "up")]
