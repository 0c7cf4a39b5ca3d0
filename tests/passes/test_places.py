"""Places: which values of a region are which published modules', after fusions and joined projections."""

from __future__ import annotations

import models
import pytest

from glmc.program import Place
from glmc.runtime.opened import read_programs

DENSE = {"input_layernorm", "post_attention_layernorm", "self_attn", "self_attn.q_proj", "self_attn.k_proj",
         "self_attn.v_proj", "self_attn.o_proj", "mlp", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}


def program():
    return read_programs(models.made("glm4_moe").session.artifact)["text"]


def of(kind, number=0):
    """The places in the region of the first (or another) step of a kind."""
    made = program()
    regions = list(dict.fromkeys(s.region for s in made.steps if made.regions[s.region].kind == kind))
    return made.places[regions[number]]


def test_the_modules_of_a_layer_have_places():
    assert DENSE <= set(of("layer"))
    assert {"mlp.gate", "mlp.experts", "mlp.shared_experts.down_proj"} <= set(of("layer", 1))
    assert "self_attn.q_norm" not in of("layer"), "a fusion swallowed it"


def test_modules_outside_the_layers_have_their_whole_path():
    assert set(of("embed")) == {"model.embed_tokens", "model.rotary_emb"}
    assert set(of("head")) == {"model.norm", "lm_head"}
    assert of("embed")["model.embed_tokens"].inputs == ("input_ids",)
    assert len(of("embed")["model.rotary_emb"].outputs) == 2


@pytest.mark.parametrize("family", ["glm", "glm4", "glm4_moe"])
def test_places_name_values_of_their_region(family):
    made = read_programs(models.made(family).session.artifact)["text"]
    assert set(made.places) == set(made.regions)
    for name, places in made.places.items():
        region = made.regions[name]
        known = {n for n, _, _ in region.inputs} | {line.split(" = ")[0] for line in region.body}
        for place in places.values():
            assert place.outputs
            assert {v.split("[")[0] for v in (*place.inputs, *place.outputs)} <= known


def test_projections_of_the_same_rows_have_columns_of_their_own():
    """Joined or not, q, k and v begin at the norm and have their own outputs."""
    places = of("layer")
    parts = [places[f"self_attn.{p}_proj"] for p in "qkv"]
    (normed,) = places["input_layernorm"].outputs
    assert {p.inputs for p in parts} == {(normed,)}
    assert len({p.outputs for p in parts}) == 3
    if "[" in parts[0].outputs[0]:
        assert [p.outputs[0].partition("[")[2] for p in parts] == ["0:96]", "96:128]", "128:160]"]


def test_places_read_back():
    data = program().to_json()
    assert data["places"]["version"] == 1
    first = next(iter(data["places"]["regions"].values()))
    assert all(isinstance(Place(*map(tuple, pair)), Place) for pair in first.values())
    assert read_programs(models.made("glm4_moe").session.artifact)["text"].to_json() == data
