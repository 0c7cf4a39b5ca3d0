"""Towers, the image tokenizer and the diffusion transformer: traced, they give what the published classes give."""

from __future__ import annotations

import copy
import sys

import picturing
import pytest
import torch
from torch import fx, nn

from glmc import dit_part, families, vision_parts
from glmc.errors import ConfigError, RequestOutOfBounds, UsageError
from glmc.families import glm_image_dit
from glmc.families.towers import tower
from glmc.kernels.attention_packed.cpu import run as attention_packed
from glmc.parts import Part
from glmc.trace import Trace, trace

# Heads of 12 lanes: 3 pairs a side; sizes that are unequal to each other.
SMALL = {"depth": 2, "hidden_size": 36, "num_heads": 3, "intermediate_size": 52, "patch_size": 2, "image_size": 10,
         "in_channels": 3}
MERGING = {**SMALL, "hidden_act": "silu", "temporal_patch_size": 2, "spatial_merge_size": 2, "out_hidden_size": 44,
           "rms_norm_eps": 1.5625e-07}
CONFIGS = {
    "glm4v": {"vision_config": {**MERGING, "attention_bias": False}},
    "glm46v": {"vision_config": {**MERGING, "attention_bias": True, "model_type": "glm4v_vision"}},
    "glmga": {"vision_config": {**MERGING, "model_type": "glm4v_vision"}},
    "glm4v_moe": {"vision_config": {**MERGING, "attention_bias": False}},
    "glm_ocr": {"vision_config": {**MERGING, "attention_bias": True}},
    "glm5_next": {"vision_config": {**MERGING, "attention_bias": True, "projection_intermediate_size": 40,
                                    "swiglu_limit": 0.5}},
    "glm_image": {"vision_config": {**SMALL, "attention_bias": True, "layer_norm_eps": 1e-6},
                  "vq_config": {"embed_dim": 20, "latent_channels": 36, "num_embeddings": 33}},
}
GRIDS = {
    "two images": [[1, 4, 6], [1, 8, 2]],
    "four images": [[1, 2, 2], [1, 6, 4], [1, 2, 10], [1, 4, 4]],
    "a video": [[3, 4, 6]],
    "a video of one more frame and another": [[4, 2, 4], [2, 6, 2]],
}


def randomise(model: nn.Module, seed: int = 3) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            drawn = torch.randn(tensor.shape, generator=generator) * 0.2
            tensor.copy_(1 + drawn if "norm" in name and name.endswith("weight") else drawn)
    return model.eval()


def published(name: str) -> nn.Module:
    """What `glmc.published.build` gives, without the text model, on the CPU with random weights."""
    from transformers import AutoConfig, AutoModel

    model, inner = nn.Module(), nn.Module()
    model.config = AutoConfig.for_model(name, **copy.deepcopy(CONFIGS[name]))
    model.config.vision_config._attn_implementation = "sdpa"
    inner.visual = AutoModel.from_config(model.config.vision_config, dtype=torch.float32)
    if name == "glm_image":
        inner.vqmodel = AutoModel.from_config(model.config.vq_config, dtype=torch.float32)
    model.model = inner
    return randomise(model)


def traced(part: Part) -> Trace:
    """The part traced on the CPU, so that its graph runs as it is."""
    return trace(part.module, tuple(torch.zeros_like(a, device="cpu") for a in part.args), part.dynamic)


@torch.no_grad()
def run(part: Part, graph: Trace, inputs: list[torch.Tensor]) -> torch.Tensor:
    weights = {**dict(part.module.named_parameters()), **dict(part.module.named_buffers())}
    names = [n.name for n in graph.graph.nodes if n.op == "placeholder"]
    given = dict(zip(graph.inputs, inputs, strict=True))
    values = [given[n] if n in given else weights[graph.parameters[n]] for n in names]
    (result,) = fx.Interpreter(fx.GraphModule(nn.Module(), graph.graph)).run(*values)
    return result


def places(graph: Trace) -> set[str]:
    return {path for n in graph.graph.nodes for path, _ in (n.meta.get("nn_module_stack") or {}).values()}


def inputs(name: str, grid: torch.Tensor) -> list[torch.Tensor]:
    dims = tower({"model_type": name, **CONFIGS[name]})
    pixels = torch.randn(int(grid.prod(-1).sum()), dims.pixels, generator=torch.Generator().manual_seed(5))
    rows = vision_parts.frames(grid)
    made = [pixels, *vision_parts.layout(rows, dims.merge), rows]
    return made if dims.table else made[:3]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_tower_gives_what_the_published_one_gives(name):
    model = published(name)
    reference = copy.deepcopy(model.model.visual)
    part = vision_parts.parts(model, torch.float32)[0]
    graph = traced(part)
    assert part.name == "vision"
    assert {"model.model.visual.blocks.1.attn", "model.model.visual.blocks.0.mlp"} <= places(graph)
    assert sum("attention_packed" in str(n.target) for n in graph.graph.nodes) == SMALL["depth"]
    assert set(part.symbols(graph).values()) == ({"P", "F"} if name == "glm_image" else {"M", "F"})
    for rows in GRIDS.values():
        grid = torch.tensor(rows)
        given = inputs(name, grid)
        # Without a table of positions the published tower takes a video's own grid; with one it is given its frames.
        own = grid if len(given) == 3 else given[3]
        with torch.no_grad():
            expected = reference(given[0], grid_thw=own).pooler_output
        result = run(part, graph, given)
        assert result.shape == expected.shape
        assert float((result - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("name", ["glm4v", "glm_ocr", "glm_image"])
def test_images_do_not_see_each_other(name):
    model = published(name)
    part = vision_parts.parts(model, torch.float32)[0]
    graph = traced(part)
    given = inputs(name, torch.tensor([[1, 4, 6], [1, 4, 4]]))
    alone = run(part, graph, given)
    changed = [given[0].clone(), *given[1:]]
    changed[0][24:] += 1
    first = alone.shape[0] * 24 // 40
    assert torch.equal(run(part, graph, changed)[:first], alone[:first])
    joined = [*given]
    joined[2] = torch.tensor([0, 40, 40], dtype=torch.int32)
    assert not torch.allclose(run(part, graph, joined)[:first], alone[:first], atol=1e-3)


def test_frames_are_rows_of_their_own():
    assert vision_parts.frames(torch.tensor([[2, 4, 6], [1, 8, 2]])).tolist() == [[1, 4, 6], [1, 4, 6], [1, 8, 2]]
    positions, ends = vision_parts.layout(torch.tensor([[1, 2, 4], [1, 2, 2]]), 2)
    assert positions.tolist()[:5] == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2]]
    assert (ends.tolist(), ends.dtype) == ([0, 8, 12], torch.int32)


def test_the_tokenizer_gives_the_published_codes():
    model = published("glm_image")
    reference = copy.deepcopy(model.model.vqmodel)
    part = vision_parts.parts(model, torch.float32)[1]
    graph = traced(part)
    features = torch.randn(1, 36, 5, 7, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = reference.encode(features).image_tokens
    result = run(part, graph, [features])
    assert (part.name, set(part.symbols(graph).values())) == ("vq", {"H", "W"})
    assert torch.equal(result, expected)
    assert len(set(result.tolist())) > 5


def test_a_text_model_has_no_further_parts():
    from transformers import AutoConfig

    model = nn.Module()
    model.config, model.model = AutoConfig.for_model(**families.load({"model_type": "glm4"}).TINY), nn.Module()
    assert vision_parts.parts(model, torch.float32) == []
    assert tower({"model_type": "glm4"}) is None


@pytest.mark.parametrize(("name", "changes", "field"), [
    ("glm4v", {"num_heads": 5}, "num_heads"), ("glm4v", {"num_heads": 6}, "num_heads"),
    ("glm4v", {"rms_norm_eps": float("nan")}, "rms_norm_eps"), ("glm4v", {"depth": 0}, "depth"),
    ("glm4v", {"hidden_act": "relu"}, "hidden_act"), ("glm4v", {"image_size": 1}, "image_size"),
    ("glm4v", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type"), ("glm4v", {"patch_size": [2, 2]}, "patch_size"),
    ("glm4v", {"rope_parameters": 3}, "rope_parameters"), ("glm_image", {"hidden_act": "silu"}, "hidden_act"),
    ("glm_image", {"hidden_act": "gelu", "layer_norm_eps": 0.0}, "layer_norm_eps"),
    ("glm5_next", {"swiglu_limit": -1.0}, "swiglu_limit"), ("glm_ocr", {"spatial_merge_size": 0}, "spatial_merge_size"),
    ("glm4", {}, "vision_config"),
])
def test_a_bad_tower_is_refused_by_field(name, changes, field):
    with pytest.raises(ConfigError) as caught:
        tower({"model_type": name, "vision_config": {**MERGING, **changes}})
    assert field in caught.value.field


def test_packed_attention_is_attention_an_image():
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 3, 9, 4, generator=generator) for _ in range(3))
    result = attention_packed(q, k, v, torch.tensor([0, 4, 4, 9]), 0.5)
    for own in (slice(0, 4), slice(4, 9)):
        weights = torch.softmax(q[:, :, own] @ k[:, :, own].transpose(2, 3) * 0.5, -1)
        assert torch.allclose(result[:, :, own], weights @ v[:, :, own], atol=1e-6)


@pytest.mark.parametrize("ends", [[], [0, 4], [1, 9], [0, 10], [0, 6, 5, 9]])
def test_bounds_that_do_not_fit_are_refused(ends):
    x = torch.zeros(1, 2, 9, 4)
    with pytest.raises(RequestOutOfBounds, match="ends"):
        attention_packed(x, x, x, torch.tensor(ends, dtype=torch.int32), 1.0)


def test_the_diffusion_transformer_gives_what_the_published_one_gives():
    reference = randomise(dit_part.build(glm_image_dit.TINY, torch.float32, "cpu"))
    part = dit_part.dit_part(dit_part.build(glm_image_dit.TINY, torch.float32), torch.float32)
    program = picturing.outlined(part)
    layers = glm_image_dit.TINY["num_layers"]
    assert [s.region for s in program.steps if s.moves] == ["all_gather", "all_gather", "past"] * layers
    assert program.mode == "sequence_parallel"
    steps = picturing.running(part, {f"transformer.{name}": tensor for name, tensor in reference.named_parameters()})
    generator = torch.Generator().manual_seed(4)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    for pictures, tokens, height, width, share in ((2, 5, 4, 6, 0.4), (3, 9, 2, 7, 0.0), (2, 2, 5, 3, 1.0), (1, 0, 1, 3, 0.5)):
        prior = torch.randint(0, 31, (pictures, height, width), generator=generator)
        dropped = torch.rand(pictures, height, width, generator=generator) < share
        given = {"latents": normal(pictures, 4, 2 * height, 2 * width), "text": normal(pictures, tokens, 20), "prior": prior,
                 "dropped": dropped, "timestep": torch.tensor([999.0, 17.0, 0.0])[:pictures],
                 "size": normal(pictures, 2).abs() * 100, "crop": normal(pictures, 2).abs() * 10}
        flat = {**given, "prior": prior.flatten(1), "dropped": dropped.flatten(1)}
        with torch.no_grad():
            expected = reference(*flat.values(), return_dict=False)[0]
        result = steps(**given, rows=torch.arange(height), columns=torch.arange(width))
        assert result.shape == expected.shape
        assert float((result - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize(("changes", "field"), [
    ({"attention_head_dim": 10}, "attention_head_dim"), ({"num_layers": 0}, "num_layers"),
    ({"out_channels": 8}, "out_channels"), ({"time_embed_dim": 15}, "time_embed_dim"), ({"patch_size": "2"}, "patch_size"),
    ({"_class_name": "Other"}, "_class_name"),
])
def test_a_bad_transformer_is_refused_by_field(changes, field):
    with pytest.raises(ConfigError) as caught:
        glm_image_dit.read({**glm_image_dit.TINY, **changes})
    assert caught.value.field == field


def test_the_transformer_is_found_by_its_class():
    assert families.load(glm_image_dit.TINY) is glm_image_dit
    dims = glm_image_dit.read(glm_image_dit.TINY)
    assert (dims.layers, dims.hidden, dims.head_dim, dims.intermediate) == (3, 36, 12, 144)


def test_an_unknown_field_is_refused():
    with pytest.raises(ConfigError, match="diffusers refuses"):
        dit_part.build({**glm_image_dit.TINY, "num_blocks": 3}, torch.float32)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UsageError) as caught:
        dit_part.build(glm_image_dit.TINY, torch.float32)
    assert "glmc[image]" in str(caught.value)
