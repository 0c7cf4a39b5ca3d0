"""`quantization_config` read strictly, and every published list against the tensors of the published class."""

import copy
import functools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import quantised
import torch

from glmc import published
from glmc.checkpoint.agree import check_scheme
from glmc.checkpoint.recipe import Concatenate, Stack, Take
from glmc.checkpoint.safetensors_header import TensorInfo
from glmc.checkpoint.scheme import scheme_of
from glmc.errors import ConfigError, SchemeMismatch, WeightMismatch

PUBLISHED = json.loads((Path(__file__).parents[1] / "data" / "quantization_configs.json").read_text())
EXPERTS = re.compile(r"(.*\.mlp\.experts)\.(gate_up_proj|down_proj)")
FEW = 4


def config_of(name):
    """config.json of a published checkpoint, its list written out."""
    one = PUBLISHED[name]
    entries = [template.replace("{}", str(n)) for template, ranges in one["entries"].items()
               for first, last in (ranges or [[0, 0]]) for n in range(first, last + 1)]
    assert len(entries) == one["count"]
    return {**one["config"], "quantization_config": {**one["said"], one["listed"]: entries}}


def is_quantised(name, module):
    """Which projections a published checkpoint holds quantised, as its model card tells; none of a vision tower."""
    if module == "lm_head" or module.endswith("indexer.weights_proj") or module.startswith("model.visual."):
        return False
    if "nvfp4" in name and "4.7" in name:
        return "self_attn" not in module
    return ".experts." in module or "fp8" in name


def recipe(name):
    found = EXPERTS.fullmatch(name)
    if not found:
        return Take(name)
    parts = ("down",) if found[2] == "down_proj" else ("gate", "up")
    return Stack(tuple(Concatenate(tuple(Take(f"{found[1]}.{e}.{p}_proj.weight") for p in parts)) for e in range(FEW)))


def stored_as(form, name, shape, block):
    """Header entries of one quantised weight."""
    out, width = shape
    byte, half = ("F8_E4M3", shape), ("U8", (out, width // 2))
    grid = (-(-out // block[0]), -(-width // block[1])) if block else (out, 1)
    return {"MX4": {name: half, f"{name}_scale": ("U8", (out, width // 32))},
            "NV4": {name: half, f"{name}_scale": ("F8_E4M3", (out, width // 16)), f"{name}_scale_2": ("F32", ())},
            "F8": {name: byte, f"{name}_scale{'_inv' if block else ''}": ("BF16", grid)}}[form]


@functools.cache
def headers(name):
    """(headers of a checkpoint, recipes, linears, layers, config) of a published model with few experts."""
    config = config_of(name)
    text = config.get("text_config", config)
    text.update(n_routed_experts=FEW, num_experts_per_tok=1, n_group=1, topk_group=1)
    scheme = scheme_of(config)
    model = published.build(config, torch.bfloat16)
    shapes = {}
    for full, tensor in model.state_dict().items():
        leaves = recipe(full).names()
        shapes |= {leaf: (tensor.shape[1] // (len(leaves) // FEW), *tensor.shape[2:]) for leaf in leaves} \
            if len(leaves) > 1 else {full: tuple(tensor.shape)}
    recipes = {full: recipe(full) for full, _ in model.named_parameters()}
    for full in [full for full in recipes if full.startswith("model.visual.") and full.endswith(".gate_proj.weight")]:
        other = full.replace("gate_proj", "up_proj")  # which the compiler joins
        recipes[full.replace("gate_proj", "gate_up_proj")] = Concatenate((Take(full), Take(other)))
    linears = published.linear_weights(model)
    modules = {leaf for full in linears for leaf in recipes[full].names()}
    layers = text["num_hidden_layers"]
    tensors = {}
    for leaf, shape in shapes.items():
        if leaf in modules and is_quantised(name, leaf.removesuffix(".weight")):
            tensors |= stored_as(scheme.forms[0], leaf, shape, scheme.block)
        else:
            tensors[leaf] = ("BF16", shape)
    infos = {full: TensorInfo(full, Path("model.safetensors"), dtype, tuple(shape), 0, 0)
             for full, (dtype, shape) in tensors.items()}
    return infos, recipes, linears, layers, config


def checked(infos, config, recipes, linears, layers):
    checkpoint = SimpleNamespace(tensors=infos, info=infos.__getitem__, folder=Path("folder"))
    return check_scheme(checkpoint, scheme_of(config), recipes, linears, layers)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_list_is_accepted(name):
    infos, recipes, linears, layers, config = headers(name)
    held = checked(infos, config, recipes, linears, layers)
    more = {full.replace(f"layers.{layers - 1}.", f"layers.{layers}."): info for full, info in infos.items()}
    assert any(full not in infos for full in more)
    assert checked(infos | more, config, recipes, linears, layers) == held  # a draft layer is nobody's business
    form = "NV4" if "nvfp4" in name else "MX4" if "mxfp4" in name else "F8"
    dense = 1 if "air" in name or "4.5v" in name else 3
    assert set(held) == {form}
    assert held[form] >= (layers - dense) * 3 * FEW


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_head_that_is_not_listed_and_an_entry_too_many(name):
    infos, recipes, linears, layers, config = headers(name)
    config, listed = copy.deepcopy(config), PUBLISHED[name]["listed"]
    config["quantization_config"][listed].remove("lm_head")
    config["quantization_config"][listed].append("model.layers.2.mlp.typo_proj")
    with pytest.raises(SchemeMismatch) as caught:
        checked(infos, config, recipes, linears, layers)
    for text in (f"lm_head.weight: has no scale, and no entry of {listed} excludes it (model.safetensors)",
                 f"model.layers.2.mlp.typo_proj: an entry of {listed} that names nothing", "disagree (2)"):
        assert text in str(caught.value)


def test_the_methods_and_what_they_may_hold():
    read = {name: scheme_of(config_of(name)) for name in PUBLISHED}
    assert {(s.method, s.forms, s.block) for s in read.values()} == {
        ("compressed-tensors", ("F8",), None), ("fp8", ("F8",), (128, 128)), ("modelopt", ("NV4",), None),
        ("quark", ("MX4",), None)}
    tiny = {kind: scheme_of({"quantization_config": {**one.said, one.listed: ["lm_head"]}})
            for kind, one in quantised.KINDS.items()}
    assert {s.excludes.entries for s in tiny.values()} == {("lm_head",)}
    assert scheme_of({}) is None
    assert scheme_of({"quantization_config": None}) is None
    assert scheme_of({"quantization_config": {"quant_method": "fp8"}}).excludes.entries == ()
    mixed = copy.deepcopy(quantised.KINDS["quark"].said)
    mixed["layer_quant_config"] = {"*self_attn*": {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}}}
    assert scheme_of({"quantization_config": mixed}).forms == ("MX4", "F8")
    blocks = copy.deepcopy(quantised.KINDS["channel"].said)
    blocks["config_groups"]["group_0"]["weights"] |= {"strategy": "block", "block_structure": [128, 64]}
    assert scheme_of({"quantization_config": blocks}).block == (128, 64)


def bent(kind, path, value):
    said = copy.deepcopy(quantised.KINDS[kind].said)
    *above, last = path.split("/")
    at = functools.reduce(lambda box, key: box[key], above, said)
    at[last] = value
    return said


GLOBAL, GROUP = "global_quant_config", "config_groups/group_0"
BENT = [
    *(("quark", "quant_method", m) for m in ("gptq", "awq", "bitsandbytes", "mxfp4", None, 4, "")),
    ("quark", "exclude", "lm_head"), ("quark", "exclude", [4]), ("quark", "exclude", [""]), ("quark", GLOBAL, None),
    ("quark", GLOBAL, [1]), ("quark", f"{GLOBAL}/weight", None), ("quark", f"{GLOBAL}/weight/dtype", "int4"),
    ("quark", f"{GLOBAL}/weight/group_size", 16), ("quark", f"{GLOBAL}/weight/group_size", True),
    ("quark", f"{GLOBAL}/weight/scale_format", "e4m3"), ("quark", f"{GLOBAL}/weight/qscheme", "per_channel"),
    ("quark", f"{GLOBAL}/weight/is_dynamic", True), ("quark", f"{GLOBAL}/output_tensors", {"dtype": "fp8_e4m3"}),
    ("quark", f"{GLOBAL}/bias", {}), ("quark", "layer_quant_config", [1]), ("quark", "export/weight_format", "fake_quantized"),
    ("quark", "export/pack_method", "odd"), ("fp8", "fmt", "e5m2"), ("fp8", "weight_block_size", [128]),
    ("fp8", "weight_block_size", [0, 128]), ("fp8", "weight_block_size", [True, 128]), ("fp8", "weight_block_size", 128),
    ("fp8", "activation_scheme", "odd"), ("fp8", "modules_to_not_convert", {"a": 1}), ("channel", "format", "pack-quantized"),
    ("channel", "format", "int-quantized"), ("channel", "config_groups", {}), ("channel", "quantization_status", "frozen"),
    ("channel", f"{GROUP}/targets", ["re:.*"]), ("channel", f"{GROUP}/weights/num_bits", 4),
    ("channel", f"{GROUP}/weights/type", "int"), ("channel", f"{GROUP}/weights/strategy", "group"),
    ("channel", f"{GROUP}/weights/symmetric", False), ("channel", f"{GROUP}/weights/dynamic", True),
    ("modelopt", "quant_algo", "W4A16_AWQ"), ("modelopt", "quant_algo", None), ("modelopt", f"{GROUP}/weights/group_size", 32),
    ("modelopt", f"{GROUP}/weights/num_bits", 8), ("modelopt", "config_groups", [1]), ("modelopt", "ignore", 4),
]


@pytest.mark.parametrize(("kind", "path", "value"), BENT, ids=str)
def test_what_is_not_read_is_refused_by_name(kind, path, value):
    with pytest.raises(ConfigError) as caught:
        scheme_of({"quantization_config": bent(kind, path, value)})
    field = caught.value.field.removeprefix("quantization_config.").replace(".", "/")
    assert path.startswith(field) or field.startswith(path)
    assert caught.value.exit == 3
    if path == "quant_method" and value:
        assert str(value) in str(caught.value)


def test_faults_of_scales_are_listed_with_the_rest():
    infos, recipes, linears, layers, config = headers("glm-5.1-mxfp4-reconstructed")
    first, second = (f"model.layers.{n}.mlp.experts.0.down_proj.weight" for n in (3, 4))
    infos = dict(infos)
    scale = infos[f"{first}_scale"]
    infos[f"{first}_scale"] = TensorInfo(scale.name, scale.file, "U8", (1, 1), 0, 0)
    with pytest.raises(WeightMismatch) as caught:  # alone, with its own facts
        checked(infos, config, recipes, linears, layers)
    assert caught.value.field == scale.name
    del infos[f"{second}_scale"]
    infos["lm_head.weight_scale"] = infos[f"{first}_scale"]
    with pytest.raises(WeightMismatch) as caught:
        checked(infos, config, recipes, linears, layers)
    for text in (scale.name, second, "a quantised weight has no scale", "lm_head.weight_scale", "(3)"):
        assert text in str(caught.value)


def test_experts_of_one_parameter_must_agree():
    infos, recipes, linears, layers, config = headers("glm-5.1-mxfp4-reconstructed")
    config, infos = copy.deepcopy(config), dict(infos)
    name = "model.layers.5.mlp.experts.1.up_proj"
    config["quantization_config"]["exclude"].append(name)
    infos[f"{name}.weight"] = TensorInfo(f"{name}.weight", Path("m"), "BF16", (2048, 6144), 0, 0)
    del infos[f"{name}.weight_scale"]
    with pytest.raises(SchemeMismatch, match="made from excluded modules and from others") as caught:
        checked(infos, config, recipes, linears, layers)
    assert "model.layers.5.mlp.experts.gate_up_proj" in str(caught.value)
    assert "down_proj" not in str(caught.value)
