"""Published rotary modules follow the layout that the configuration asks for; models without three axes refuse it."""

from __future__ import annotations

import importlib
from types import MethodType

import pytest
import torch
from torch import nn

from glmc import families, published
from glmc.axes_in_model import follow
from glmc.axis_map import KEYS, axis_map
from glmc.errors import ConfigError
from glmc.passes import tidy
from glmc.trace import trace

SECTIONS = (2, 3, 3)
LAYOUTS = {"chunked": {}, "qwen3vl_interleaved": {KEYS[0]: True}, "glm_interleaved": {KEYS[0]: True, KEYS[1]: True}}
MODELS = {"glm4v": "pairs", "glm4v_moe": "halves", "glm_ocr": "pairs", "glm_image": "halves"}
ONE_AXIS = ("glm", "glm4", "glm4_moe")


class Rotary(nn.Module):
    """The published rotary module of a tiny text model, under the name it has there."""

    def __init__(self, model: str, **keys: bool) -> None:
        super().__init__()
        from transformers import AutoConfig

        self.config = AutoConfig.for_model(
            f"{model}_text", hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
            num_hidden_layers=1, intermediate_size=32, rope_parameters={
                "rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(SECTIONS),
                "partial_rotary_factor": 0.5, **keys})
        module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
        (made,) = (getattr(module, n) for n in dir(module) if n.endswith("TextRotaryEmbedding"))
        self.rotary_emb = made(self.config)

    def forward(self, x: torch.Tensor, positions: torch.Tensor):
        return self.rotary_emb(x, positions)


X = torch.zeros(2, 7, 64)
POSITIONS = torch.randint(0, 500, (3, 2, 7), generator=torch.Generator().manual_seed(5))
AGREE = POSITIONS[1:2].expand(3, -1, -1)


def expected(model: str, positions: torch.Tensor, order: str) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [B, S, 2n] lane by lane from the formula."""
    frequency = 1.0 / 10000.0 ** (torch.arange(0, 16, 2).float() / 16)
    angles = torch.stack([positions[axis].float() * frequency[i]
                          for i, axis in enumerate(axis_map(SECTIONS, 8, order))], dim=-1)
    spread = angles.repeat_interleave(2, dim=-1) if MODELS[model] == "pairs" else torch.cat([angles, angles], dim=-1)
    return spread.cos(), spread.sin()


@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize("model", MODELS)
def test_the_table_follows_the_keys(model, order):
    made = Rotary(model, **LAYOUTS[order])
    published_table = made(X, POSITIONS)
    assert follow(made) == order
    for positions in (POSITIONS, AGREE):
        for got, exact in zip(made(X, positions), expected(model, positions, order), strict=True):
            assert torch.equal(got, exact)
    for ours, theirs in zip(made(X, POSITIONS), published_table, strict=True):
        assert torch.equal(ours, theirs) == (order == "chunked"), "rows differ: so do the layouts, and only they"
    for ours, theirs in zip(made(X, AGREE), Rotary(model)(X, AGREE), strict=True):
        assert torch.equal(ours, theirs), "rows agree: so do all layouts"


@pytest.mark.parametrize("keys", [{}, {KEYS[0]: False}, {KEYS[1]: True}, {KEYS[0]: False, KEYS[1]: True}])
def test_nothing_is_replaced_where_chunked_is_asked_for(keys):
    made = Rotary("glm4v", **keys)
    follow(made)
    assert "recomposition_frequencies" not in vars(made.rotary_emb)


@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize("model", ["glm4v", "glm4v_moe"])
def test_its_trace_holds_the_axis_map_whatever_spelled_it(model, order):
    made = Rotary(model, **LAYOUTS[order]).to("meta")
    follow(made)
    made.rotary_emb.forward = MethodType(type(made.rotary_emb).forward.__wrapped__, made.rotary_emb)
    graph = trace(made, (X.to("meta"), POSITIONS.to("meta"))).graph
    tidy.tidy(graph)
    picked = [n for n in graph.nodes if n.op == "call_function" and "pick_lanes" in str(n.target)]
    assert [n.args[1] for n in picked] == [list(axis_map(SECTIONS, 8, order))] * 2
    assert not any("split" in str(n.target) or "select" in str(n.target) for n in graph.nodes)


@pytest.mark.parametrize("family", ONE_AXIS)
def test_a_model_with_one_axis_refuses_the_key_by_name(family):
    config = dict(families.load({"model_type": family}).TINY)
    rope = {"rope_type": "default", "rope_theta": config.pop("rope_theta"), "partial_rotary_factor": 0.5}
    with pytest.raises(ConfigError, match=f"field: {KEYS[0]}\n"):
        published.build({**config, "rope_parameters": {**rope, KEYS[0]: True}}, torch.float32)
    assert published.build({**config, "rope_parameters": {**rope, KEYS[0]: False}}, torch.float32)


def test_a_key_that_is_no_truth_and_sections_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=KEYS[0]):
        follow(Rotary("glm4v", **{KEYS[0]: 1}))
    made = Rotary("glm4v", **LAYOUTS["glm_interleaved"])
    made.rotary_emb.mrope_section = [2, 3, 4]
    with pytest.raises(ConfigError, match="mrope_section"):
        follow(made)


def test_channels_spread_in_an_unknown_way_are_refused():
    made = Rotary("glm4v", **LAYOUTS["glm_interleaved"])
    plain = made.rotary_emb.recomposition_frequencies
    made.rotary_emb.recomposition_frequencies = lambda freq: plain(freq).flip(-1)
    with pytest.raises(ConfigError, match="Glm4vTextRotaryEmbedding"):
        follow(made)
