"""A page of a 92-layer model for tests: a tiny model's drawing, its layers called as often as GLM-4.5 calls them."""

from __future__ import annotations

import functools
import json
import re
import tempfile
from pathlib import Path

import models
import once

from glmc.html.program import Pictured, program_page
from glmc.program import MAIN
from glmc.target import named

DENSE, LAYERS = 3, 92


@functools.cache
def ninety_two_layers() -> str:
    """The page of a glm4_moe whose layers 0..2 are dense and whose layers 3..91 route."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(models.tiny_config("glm4_moe", torch_dtype="bfloat16")))
        surveyed = once.survey(config, named("cpu"))
    program = surveyed.programs[MAIN]
    part = program.to_json()
    embed, dense, *_, routed, head = part["steps"]

    def at(step: dict, layer: int, value: int) -> dict:
        own = re.compile(r"(?<=layers\.)\d+|(?<=^cache:keys\.)\d+|(?<=^cache:values\.)\d+")
        inputs = [own.sub(str(layer), name) for name in step["inputs"]]
        return {**step, "inputs": inputs, "outputs": [f"value:{value}"]}

    first = len(embed["outputs"])
    layers = [at(dense if layer < DENSE else routed, layer, first + layer) for layer in range(LAYERS)]
    head = {**head, "inputs": [f"value:{first + LAYERS - 1}", *head["inputs"][1:]]}
    part["steps"] = [embed, *layers, head]
    texts = {name: region.text() for name, region in program.regions.items()}
    return program_page(Pictured("92 layers", {"layers": LAYERS}, {MAIN: part}, texts, surveyed.ledger.to_json(),
                                 surveyed.drawing))
