"""sources.json: every tensor can be found in it again, and equal layers are written once."""

import re
from pathlib import Path

from glmc.checkpoint.origins import origins
from glmc.checkpoint.recipe import Concatenate, Stack, Take
from glmc.checkpoint.safetensors_header import TensorInfo


def infos(*names):
    return {name: TensorInfo(name, Path("m"), "BF16", (1,), 0, 2) for name in names}


def expanded(text, layer=None):
    """The names that a folded one stands for, in layer `layer`."""
    names = [text if layer is None else text.replace("{}", str(layer))]
    while (found := re.search(r"\[([^]]*)\]", names[0])) is not None:
        runs = [run.partition("-") for run in found[1].split(", ")]
        numbers = [n for first, _, last in runs for n in range(int(first), int(last or first) + 1)]
        names = [name.replace(found[0], str(n), 1) for name in names for n in numbers]
    return set(names)


def test_every_tensor_is_found_again():
    def expert(layer, e, part):
        return f"model.layers.{layer}.mlp.experts.{e}.{part}_proj.weight"

    table = "model.embed_tokens.weight"
    recipes = {table: Take(table), "lm_head.weight": Take(table)}
    for layer in (0, 1, 2, 5):
        at = f"model.layers.{layer}"
        recipes[f"{at}.self_attn.qkv_proj.weight"] = Concatenate([Take(f"{at}.self_attn.{p}_proj.weight") for p in "qkv"])
        if layer:
            recipes[f"{at}.mlp.experts.gate_up_proj"] = Stack(
                [Concatenate([Take(expert(layer, e, p)) for p in ("gate", "up")]) for e in range(12)])
    idle = [expert(6, e, "up") for e in (0, 1, 2, 7)]
    tensors = infos(*{name for recipe in recipes.values() for name in recipe.names()}, *idle)
    told = origins(recipes, tensors)
    assert told["read"] == len(tensors) - 4
    assert told["forms"] == {"BF16": told["read"]}
    assert told["unread"] == {"count": 4, "tensors": ["model.layers.6.mlp.experts.[0-2, 7].up_proj.weight"]}
    assert expanded(*told["unread"]["tensors"]) == set(idle)
    assert [one["parameter"] for one in told["parameters"]] == [
        "model.embed_tokens.weight", "lm_head.weight", "model.layers.{}.self_attn.qkv_proj.weight",
        "model.layers.{}.mlp.experts.gate_up_proj"]
    assert [one.get("layers") for one in told["parameters"]] == [None, None, "0-2, 5", "1-2, 5"]
    for one in told["parameters"]:
        for layer in expanded(f"[{one['layers']}]") if "layers" in one else [None]:
            names = {name for text in one["from"] for name in expanded(text, layer)}
            assert names == set(recipes[one["parameter"].replace("{}", str(layer))].names())
