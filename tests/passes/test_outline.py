"""Outlining: equal layers share a region, regions take tensors only, and their text says everything."""

from __future__ import annotations

import json
import re

import models
import pytest

from glmc.program import Region
from glmc.runtime.opened import read_programs
from glmc.survey import survey
from glmc.target import named


def program(family: str):
    """What the compiler wrote for the family's tiny model, which has three layers."""
    return read_programs(models.made(family).session.artifact)["text"]


def calls(made, kind):
    return [s.region for s in made.steps if made.regions[s.region].kind == kind]


def test_layers_that_do_the_same_share_a_region():
    made = program("glm4_moe")
    dense, *routed = calls(made, "layer")
    assert len(routed) == 2
    assert len(set(routed)) == 1
    assert dense not in routed
    assert len(calls(made, "embed")) == len(calls(made, "head")) == 1
    assert made.calls() == 5


def test_regions_do_not_grow_with_depth(tmp_path):
    config = models.tiny_config("glm", num_hidden_layers=6)
    (tmp_path / "config.json").write_text(json.dumps(config))
    shallow, deep = program("glm"), survey(tmp_path, named("fx"), "float32").program
    assert deep.regions == shallow.regions
    assert deep.calls() == shallow.calls() + 3


def test_a_towers_regions_do_not_grow_with_depth(tmp_path):
    shallow = read_programs(models.made("glm_ocr").session.artifact)["vision"]
    config = models.tiny_config("glm_ocr")
    config = {**config, "vision_config": {**config["vision_config"], "depth": 5},
              "text_config": {**config["text_config"], "num_hidden_layers": 1}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = survey(tmp_path, named("fx"), "float32")
    deep = found.programs["vision"]
    assert deep.regions == shallow.regions
    assert len(deep.regions) <= 4
    assert deep.calls() == shallow.calls() + 3
    assert not found.ledger.broken
    assert all(row["expected"] == row["proved"] for row in found.ledger.to_json())


@pytest.mark.parametrize("family", models.READING + models.SEEING)
def test_a_region_is_its_text(family):
    for name, region in program(family).regions.items():
        text = region.text()
        assert Region.parse(text) == region
        assert Region.parse(text).text() == text
        anonymous = Region(region.kind, region.inputs, region.outputs, region.body)
        assert name == f"{region.kind}_{Region.digest(anonymous.text())}"


@pytest.mark.parametrize("family", models.READING + models.SEEING)
def test_sizes_are_read_again_from_a_regions_own_inputs(family):
    seen = 0
    for region in program(family).regions.values():
        inputs = {name: spec for name, _, spec in region.inputs}
        for line in region.body:
            found = re.fullmatch(r"size_([BSL])(?:_\d+)? = aten\.sym_size\.int\((\w+), (\d+)\)", line)
            if "sym_size" in line:
                assert found, line
                assert inputs[found[2]].shape[int(found[3])] == found[1]
                seen += 1
        assert {s for spec in inputs.values() for s in spec.shape if isinstance(s, str)} <= {"B", "S", "L", "M"}
    assert seen or "moe" not in family, "a product over all tokens reads their number"


def test_every_step_binds_its_own_layers_weights():
    made = program("glm4_moe")
    for number, step in enumerate(s for s in made.steps if made.regions[s.region].kind == "layer"):
        layers = {re.search(r"layers\.(\d+)\.", n)[1] for n in step.inputs if n.startswith("weight:")}
        assert layers == {str(number)}
        assert {f"cache:keys.{number}", f"cache:values.{number}"} <= set(step.inputs)


def test_fused_ops_stand_in_the_text():
    texts = "".join(r.text() for r in program("glm4_moe").regions.values())
    for op in ("split_qkv_norm_rope", "rope_table", "add_rms_norm", "rms_norm", "silu_mul", "attention", "moe_route",
               "moe_experts"):
        assert f"glmc.{op}(" in texts
    assert "model.layers" not in texts


@pytest.mark.parametrize("family", models.READING + models.SEEING)
def test_new_keys_and_values_go_to_their_slots_with_what_makes_them(family):
    layers = [region for region in program(family).regions.values() if region.kind == "layer"]
    attends = [region for region in layers if "glmc.attention(" in region.text()]
    for region in attends:
        assert "aten.index_put_" not in region.text()
        assert "keys, values, " in next(line for line in region.body if "glmc.split_qkv_norm_rope(" in line)
    assert attends or all("glmc.latent_attention(" in region.text() or "glmc.delta_rule(" in region.text() for region in layers)
