"""The simulator of ranks that are not here: its counts against sums by hand, and what bounds a stage."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from models import RANKED, tiny_config

import glmc
from glmc.errors import UnknownName, UsageError
from glmc.program import Program, Region, Step
from glmc.survey import survey
from glmc.target import LINKS, Link, link, named
from glmc.topology import Rank, cost_of, predict

LAYER = Region.parse('''
def layer_1(
    x: "value float32 [B, S, 64]",
    weight: "weight float32 [64, 64]",
) -> "float32 [B, S, 64]":
    linear = aten.linear.default(x, weight)
    return (linear,)
''')
QUICK, SLOW = Link(1e15, 0.0), Link(1e9, 1e-4)


def program(*moves: str, **fixed: int | str) -> Program:
    steps = [Step("layer_1", ("input:x", "weight:a"), ("value:0",))]
    for number, name in enumerate(moves):
        steps.append(Step(name, (f"value:{number}",), (f"value:{number + 1}",), fixed=fixed))
    return Program({"layer_1": LAYER}, tuple(steps), f"value:{len(moves)}")


def test_a_product_is_counted():
    cost = cost_of(LAYER, {"B": 2, "S": 5})
    assert cost.flops == 2 * 10 * 64 * 64
    assert cost.bytes == 4 * (10 * 64 * 2 + 64 * 64)


@pytest.mark.parametrize(("rank", "bound"), [(Rank(1e6, 1e12), "compute"), (Rank(1e12, 1e6), "memory")])
def test_the_slower_of_computing_and_reading_bounds(rank, bound):
    found = predict(program(), {"B": 1, "S": 1}, 1, rank, QUICK)
    cost = cost_of(LAYER, {"B": 1, "S": 1})
    assert found.bound == bound
    assert found.seconds == max(cost.flops / rank.flops, cost.bytes / rank.bandwidth)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_a_sum_goes_round_the_ring_twice(ranks):
    found = predict(program("all_reduce"), {"B": 1, "S": 8}, ranks, Rank(1e15, 1e15), SLOW)
    size = 8 * 64 * 4
    assert found.bound == "link"
    assert math.isclose(found.rows[0].seconds, 2 * (ranks - 1) * (size / ranks / 1e9 + 1e-4))


def test_entries_that_all_ranks_hold_are_not_sent():
    one = predict(program("all_gather", dim=1, after="S"), {"B": 1, "S": 8}, 2, Rank(1e15, 1e15), Link(1e9, 0.0))
    all_of_it = predict(program("all_gather", dim=1), {"B": 1, "S": 8}, 2, Rank(1e15, 1e15), Link(1e9, 0.0))
    assert next(row for row in one.rows if row.name == "all_gather").seconds == 0
    assert next(row for row in all_of_it.rows if row.name == "all_gather").seconds == 8 * 64 * 4 / 1e9


def test_one_rank_moves_nothing():
    found = predict(program("all_reduce"), {"B": 1, "S": 8}, 1, Rank(1e15, 1e15), SLOW)
    assert next(row for row in found.rows if row.name == "all_reduce").seconds == 0


def test_calls_cost_what_starting_them_takes():
    bare = predict(program(), {"B": 1, "S": 1}, 1, Rank(1e9, 1e9), QUICK)
    assert math.isclose(predict(program(), {"B": 1, "S": 1}, 1, Rank(1e9, 1e9, call=0.5), QUICK).seconds, bare.seconds + 0.5)


def test_of_experts_and_embeddings_what_a_token_visits_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("glm4_moe")))
    text = survey(tmp_path, named("fx"), "float32").program
    layer = next(region for region in text.regions.values() if any("moe_experts(" in line for line in region.body))
    embed = text.regions[text.steps[0].region]

    def read(region: Region, tokens: int) -> float:
        return cost_of(region, {"B": 1, "S": tokens, "L": 64}).bytes

    experts = {name: spec.shape for name, _, spec in layer.inputs if "experts" in name and len(spec.shape) == 3}
    count, each = next(iter(experts.values()))[0], sum(math.prod(shape[1:]) for shape in experts.values())
    top = next(int(part[4:]) for line in layer.body if "moe_route(" in line for part in line.strip(")").split(", ")
               if part.startswith("top="))
    assert len(experts) == 2
    assert top < count
    steady = read(layer, 40) - read(layer, 39)  # all experts are read by then
    assert math.isclose(read(layer, 2) - read(layer, 1) - steady, 4 * each * min(top, count - top))
    table = next(spec.shape for name, _, spec in embed.inputs if "embed_tokens" in name)
    assert read(embed, 1) < 4 * math.prod(table) <= read(embed, 1000)


def test_letters_without_a_value_are_refused():
    with pytest.raises(UsageError) as refused:
        cost_of(LAYER, {"B": 1})
    assert refused.value.field == "S"


def test_links_have_names():
    assert link("nvlink-4") is LINKS["nvlink-4"]
    with pytest.raises(UnknownName):
        link("string")


@pytest.mark.parametrize("variant", ["glm4_moe-ranks", "glm4-ranks"])
def test_a_plan_foretells_stages_of_ranks(variant, tmp_path):
    family, changes = RANKED[variant]
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(family, **changes)))
    found = glmc.plan(tmp_path, ranks=2, link="nvlink-4").forecast
    assert [row["mode"] for row in found["stages"]] == ["tensor_parallel"] * 2
    prompt, token = found["stages"]
    assert prompt["seconds"] > token["seconds"] > 0
    assert glmc.plan(tmp_path).forecast is None
    with pytest.raises(UsageError) as refused:
        glmc.plan(tmp_path, ranks=7)
    assert "1, 2" in str(refused.value.expected)


@pytest.mark.parametrize(("asked", "field"), [({"ranks": 0}, "ranks"), ({"ranks": 2, "link": "string"}, "link")])
def test_what_cannot_be_foretold_is_refused_before_the_trace(asked, field, monkeypatch):
    monkeypatch.setattr("glmc.planner.survey", lambda *_: pytest.fail("it was traced"))
    with pytest.raises(UsageError) as refused:
        glmc.plan(Path(__file__).parents[1] / "bench" / "configs" / "glm-4.5-air.json", **asked)
    assert refused.value.field == field


def test_a_published_model_is_foretold_faster_on_more_ranks(tmp_path):
    config = json.loads((Path(__file__).parents[1] / "bench" / "configs" / "glm-4.5-air.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1, "first_k_dense_replace": 0}))
    times = [glmc.plan(tmp_path, target="cuda:sm_90", ranks=n, link="nvlink-4").forecast["stages"] for n in (2, 8)]
    for two, eight in zip(*times, strict=True):
        assert two["one_rank_seconds"] == eight["one_rank_seconds"] > two["seconds"]
    assert times[0][0]["seconds"] > times[1][0]["seconds"]
