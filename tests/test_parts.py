"""Text parts of every family: their inputs, and their traced graphs against the published models on the CPU."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import fx

from glmc import families, kernels
from glmc.errors import ConfigError, NotCompiled
from glmc.parts import parts, text_part
from glmc.published import build
from glmc.trace import Trace, trace

TEXT = [n for n in families.names() if n != "glm_image_dit"]
THREE = ("glm4v", "glm46v", "glmga", "glm4v_moe", "glm_ocr", "glm_image")
SEEING = tuple(n for n in THREE if n != "glm_image")
GROUPED = ("aten._grouped_mm.default", "transformers.grouped_mm_fallback.default")


def tiny(name, **changes):
    """The family's tiny configuration; changes go to its text model."""
    config = copy.deepcopy(families.load({"model_type": name}).TINY)
    (config["text_config"] if "text_config" in config else config).update(changes)
    return config


def published(config):
    """transformers' own model with its plain attention and experts one by one, every parameter and buffer random."""
    from transformers import AutoConfig

    import glmc.published

    parsed = AutoConfig.for_model(**config)
    experts = {"experts_implementation": "eager"} if hasattr(parsed.get_text_config(), "n_routed_experts") else {}
    model = glmc.published.class_of(parsed)(parsed, dtype=torch.float32, attn_implementation="eager", **experts).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            drawn = torch.randn(tensor.shape, generator=generator) * (0.3 if "norm" in name or "bias" in name else 0.15)
            tensor.copy_(1 + drawn if "norm" in name else drawn)
    return model


class Interpreter(fx.Interpreter):
    """Runs a raw trace: ops that are opaque while tracing are glmc's kernels."""

    def call_function(self, target, args, kwargs):
        name = str(target)
        if name in GROUPED:
            return kernels.load("grouped_mm", "cpu").run(*args)
        if name.startswith("aten._assert_tensor_metadata"):
            return None
        if name == "aten.histc.default":  # traced as on an accelerator, where it takes whole numbers
            args = (args[0].float(), *args[1:])
        if name == "glmc.attention.default":
            return kernels.load("attention", "cpu").run(*args[:-1], scale=args[-1])
        if name.startswith("glmc.") and kernels.has(name.split(".")[1], "cpu"):
            return kernels.load(name.split(".")[1], "cpu").run(*args, **kwargs)
        if "device" in kwargs:
            kwargs = {**kwargs, "device": "cpu"}
        args = tuple(torch.device("cpu") if isinstance(a, torch.device) else a for a in args)
        return super().call_function(target, args, kwargs)


@torch.no_grad()
def run(traced: Trace, model, inputs):
    """The graph's result with the model's own parameters; `inputs` are flat and may be written."""
    found = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    given = []
    left = iter(inputs)
    for node in traced.graph.find_nodes(op="placeholder"):
        name = traced.parameters.get(node.name)
        given.append(next(left) if name is None else found[name.removeprefix("model.")])
    return Interpreter(fx.GraphModule(torch.nn.Module(), traced.graph)).run(*given)[0]


@pytest.fixture(scope="module", params=TEXT)
def made(request):
    """(family, configuration, published model, part, its trace), in float32."""
    config = tiny(request.param)
    (part,) = parts(config, torch.float32)
    return request.param, config, published(config), part, trace(part.module, part.args, part.dynamic)


def state(part, rows, slots):
    """Empty caches for `rows` rows of `slots` slots."""
    shapes = [(t.shape, d, t.dtype) for layer, dims in zip(part.args[-1], part.dynamic[-1], strict=True)
              for t, d in zip(layer, dims, strict=True)]
    return [torch.zeros([rows if i == 0 else slots if i in dims else n for i, n in enumerate(shape)], dtype=dtype)
            for shape, dims, dtype in shapes]


def positions_of(name, start, rows, tokens):
    """Positions of text, or three rows of them that differ."""
    flat = torch.arange(start, start + tokens).expand(rows, tokens).contiguous()
    if name not in THREE:
        return flat
    return torch.stack([flat, flat * 2 + 1, (flat * 5 + 3) % 17])


def places(name, model, where):
    """What comes behind `slots`: where new tokens go, and features of which none is theirs."""
    if name not in THREE:
        return []
    seen = [torch.full((4, model.config.get_text_config().hidden_size), 9.0), torch.full_like(where, -1)]
    return [where, *(seen if name in SEEING else [])]


@torch.no_grad()
def expected(name, model, ids, positions):
    """The published model's logits of whole rows, without a cache."""
    if not hasattr(model.model, "language_model"):
        return model(input_ids=ids, position_ids=positions, use_cache=False).logits
    hidden = model.model.language_model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
    return model.lm_head(hidden)


def test_the_inputs_have_names_in_order(made):
    name, config, _, part, traced = made
    assert len(part.names) == len(set(part.names)) == len(traced.inputs)
    front = ("input_ids", "positions", "slots", *(("where",) if name in THREE else ()),
             *(("features", "media") if name in SEEING else ()))
    assert part.names[:len(front)] == front
    values = {n.name: n.meta["val"] for n in traced.graph.find_nodes(op="placeholder")}
    shapes = {n: tuple(values[i].shape) for n, i in zip(part.names, traced.inputs, strict=True)}
    symbols = part.symbols(traced)
    assert sorted(symbols.values()) == ["B", "L", *("M" if name in SEEING else ""), "S"]
    lettered = {n: tuple(symbols.get(str(s), s) for s in shape) for n, shape in shapes.items()}
    assert lettered["input_ids"] == ("B", "S")
    assert lettered["positions"] == ((3, "B", "S") if name in THREE else ("B", "S"))
    assert lettered["slots"] == ("L",)
    if name in SEEING:
        assert (lettered["features"], lettered["media"]) == (("M", config["text_config"]["hidden_size"]), ("B", "S"))
    caches = {n: s for n, s in lettered.items() if n not in front}
    assert all(s[0] == "B" for s in caches.values())
    assert all(s[1] == "L" and len(s) == 4 for n, s in caches.items() if n.split(".")[0] not in ("convolved", "state"))
    layers = (config.get("text_config") or config)["num_hidden_layers"]
    assert {n.split(".")[1] for n in caches} == {str(i) for i in range(layers)}


@pytest.mark.parametrize(("name", "expected"), [
    ("glm4", {"keys.0": ("B", "L", 2, 16), "values.2": ("B", "L", 2, 16)}),
    ("glm4_moe_lite", {"latent.0": ("B", "L", 1, 20), "turned.2": ("B", "L", 1, 8)}),
    ("glm_moe_dsa", {"latent.2": ("B", "L", 1, 20), "index.1": ("B", "L", 1, 14), "index.2": None}),
    ("glm5_next", {"convolved.0": ("B", 90, 4), "state.3": ("B", 3, 10, 10), "latent.1": ("B", "L", 1, 20),
                   "turned.1": None, "index.1": ("B", "L", 1, 29), "index.2": None}),
])
def test_the_state_is_what_the_layers_keep(name, expected):
    part = text_part(build(tiny(name), torch.bfloat16), torch.bfloat16)
    front = len(part.args) - 1
    flat = [t for layer in part.args[-1] for t in layer]
    shapes = {n: tuple(t.shape) for n, t in zip(part.names[front:], flat, strict=True)}
    sizes = {"B": part.args[0].shape[0], "L": part.args[2].shape[0]}
    for cache, shape in expected.items():
        assert shapes.get(cache) == (None if shape is None else tuple(sizes.get(s, s) for s in shape)), cache
    kinds = {t.dtype for n, t in zip(part.names[front:], flat, strict=True) if n.startswith("state")}
    assert kinds <= {torch.float32}


def test_only_the_text_model_is_traced(made):
    _, _, model, _, traced = made
    names = {n.removeprefix("model.") for n in traced.parameters.values()}
    owned = {n for n, _ in (*model.named_parameters(), *model.named_buffers())
             if ".visual." not in n and ".vqmodel." not in n}
    assert names <= owned | {"lm_head.weight"}
    assert {n for n in owned if n.endswith("weight")} - names <= {"lm_head.weight"}


def test_a_prefill_from_empty_is_the_published_model(made):
    name, _, model, part, traced = made
    rows, tokens, slots = 2, 13, 19
    ids = torch.randint(2, 100, (rows, tokens), generator=torch.Generator().manual_seed(5))
    positions, where = positions_of(name, 0, rows, tokens), torch.arange(tokens).expand(rows, tokens).contiguous()
    inputs = [ids, positions, torch.arange(slots), *places(name, model, where), *state(part, rows, slots)]
    reference = expected(name, model, ids, positions)
    ours = run(traced, model, inputs)
    assert ours.shape == reference.shape
    assert reference.abs().max() > 0.05, "logits near zero would hide a difference"
    assert (ours - reference).abs().max() < 1e-5 * max(1.0, float(reference.abs().max()))


@pytest.mark.parametrize("made", ["glm4v", "glm4v_moe"], indirect=True)
def test_a_token_that_is_an_image_takes_its_row_of_the_features(made):
    name, _, model, part, traced = made
    rows, tokens, slots, hidden = 2, 6, 9, model.config.get_text_config().hidden_size
    draw = torch.Generator().manual_seed(8)
    ids, features = torch.randint(2, 100, (rows, tokens), generator=draw), torch.randn(5, hidden, generator=draw)
    media = torch.tensor([[-1, 3, 0, -1, -1, 4], [2, -1, -1, -1, 1, 1]])
    where = torch.arange(tokens).expand(rows, tokens).contiguous()
    positions = positions_of(name, 0, rows, tokens)
    embedded = model.model.language_model.embed_tokens(ids).detach()
    for row, column in (media >= 0).nonzero().tolist():
        embedded[row, column] = features[media[row, column]]
    with torch.no_grad():
        hidden_states = model.model.language_model(inputs_embeds=embedded, position_ids=positions, use_cache=False)
        reference = model.lm_head(hidden_states.last_hidden_state)
    ours = run(traced, model, [ids, positions, torch.arange(slots), where, features, media, *state(part, rows, slots)])
    assert (ours - reference).abs().max() < 1e-5 * max(1.0, float(reference.abs().max()))


def test_rows_of_unequal_length_go_on_where_they_were(made):
    """A chunk at its own place in each row gives what the whole row gives at once: caches and states are written."""
    name, _, model, part, traced = made
    slots, lengths, more = 23, (7, 4), 5
    caches = state(part, 2, slots)
    wanted = []
    for row, length in enumerate(lengths):
        ids = torch.randint(2, 100, (1, length + more), generator=torch.Generator().manual_seed(11 + row))
        positions = positions_of(name, 0, 1, length + more)
        wanted.append((ids, positions, expected(name, model, ids, positions)))
        own = [c[row:row + 1] for c in caches]
        where = torch.arange(length).expand(1, length).contiguous()
        inputs = [ids[:, :length], positions[..., :length], torch.arange(slots), *places(name, model, where), *own]
        run(traced, model, inputs)
    where = torch.stack([torch.arange(n, n + more) for n in lengths])
    ids = torch.cat([w[0][:, -more:] for w in wanted])
    positions = torch.cat([w[1][..., -more:] for w in wanted], dim=1 if name in THREE else 0)
    ours = run(traced, model, [ids, positions, torch.arange(slots), *places(name, model, where), *caches])
    for row, (_, _, reference) in enumerate(wanted):
        assert (ours[row] - reference[0, -more:]).abs().max() < 1e-5 * max(1.0, float(reference.abs().max()))


@pytest.mark.parametrize("name", THREE)
def test_the_three_rows_matter(name):
    config = tiny(name)
    model = published(config)
    ids = torch.arange(2, 11).unsqueeze(0)
    three = positions_of(name, 0, 1, 9)
    apart = expected(name, model, ids, three) - expected(name, model, ids, three[:1].expand(3, 1, 9))
    assert apart.abs().max() > 1e-4


@pytest.mark.parametrize("name", ["glm4_moe", "glm_moe_dsa", "glm4v"])
def test_a_quantised_configuration_is_planned_as_if_it_were_not(name):
    config = {**tiny(name), "quantization_config": {"quant_method": "fp8"}}
    dims = families.load(config).read(config)
    assert dims.quantised == "fp8"
    plain, same = (parts(c, torch.bfloat16)[0] for c in (tiny(name), config))
    assert plain.names == same.names
    shapes = [{n: tuple(p.shape) for n, p in part.module.named_parameters()} for part in (plain, same)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", [n for n in TEXT if n not in families.compiled()])
def test_a_family_that_is_only_planned_is_not_compiled(tmp_path, name):
    import glmc

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(tiny(name)))
    (tmp_path / "model" / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(NotCompiled, match=name) as fault:
        glmc.compile(tmp_path / "model", tmp_path / "out.glmc")
    assert fault.value.exit == 3
    assert not (tmp_path / "out.glmc").exists()


BAD = [
    ("glm4v", {"head_dim": 14}, "head_dim"),
    ("glm4v", {"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ("glm_ocr", {"rope_parameters": {"rope_theta": 1e4, "mrope_section": [1, 2, 4]}}, "mrope_section"),
    ("glm4v_moe", {"use_qk_norm": True}, "use_qk_norm"),
    ("glm4v_moe", {"num_experts_per_tok": 9}, "num_experts_per_tok"),
    ("glm_image", {"vision_vocab_size": 0}, "vision_vocab_size"),
    ("glm4_moe_lite", {"qk_rope_head_dim": 7}, "qk_rope_head_dim"),
    ("glm4_moe_lite", {"head_dim": 16}, "head_dim"),
    ("glm4_moe_lite", {"kv_lora_rank": None}, "kv_lora_rank"),
    ("glm4_moe_lite", {"num_key_value_heads": 1}, "num_key_value_heads"),
    ("glm4_moe_lite", {"scoring_func": "softmax"}, "scoring_func"),
    ("glm_moe_dsa", {"indexer_types": ["shared", "full", "full"]}, "indexer_types"),
    ("glm_moe_dsa", {"indexer_types": ["full"]}, "indexer_types"),
    ("glm_moe_dsa", {"index_head_dim": 4}, "index_head_dim"),
    ("glm_moe_dsa", {"indexer_rope_interleave": False}, "indexer_rope_interleave"),
    ("glm_moe_dsa", {"mlp_layer_types": ["sparse", "dense", "sparse"]}, "mlp_layer_types"),
    ("glm5_next", {"qk_rope_head_dim": 8}, "qk_rope_head_dim"),
    ("glm5_next", {"index_topk": 7}, "index_topk"),
    ("glm5_next", {"layer_types": ["linear_attention"]}, "layer_types"),
    ("glm5_next", {"indexer_types": ["full", "shared", "full", "full"]}, "indexer_types"),
    ("glm5_next", {"linear_attn_config": {"num_heads": 0}}, "num_heads"),
]


@pytest.mark.parametrize(("name", "changes", "field"), BAD)
def test_a_configuration_that_does_not_fit_is_refused_by_field(name, changes, field):
    config = tiny(name, **changes)
    with pytest.raises(ConfigError) as fault:
        families.load(config).read(config)
    assert str(fault.value.field).endswith(field)


@pytest.mark.parametrize("name", [n for n in TEXT if "text_config" in tiny(n)])
def test_a_nested_family_without_its_text_model_is_refused(name):
    config = {k: v for k, v in tiny(name).items() if k != "text_config"}
    with pytest.raises(ConfigError) as fault:
        families.load(config).read(config)
    assert fault.value.field == "text_config"
