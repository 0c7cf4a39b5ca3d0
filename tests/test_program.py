"""Programs and regions as text: what is written reads back, and what glmc does not write is refused as damage."""

from __future__ import annotations

import dataclasses
import json

import pytest

from glmc.errors import DamagedArtifact
from glmc.program import Program, Region, Spec, Step, read, written

TEXT = '''def layer_00000000(
    x: "value bfloat16 [B, S, 64]",
    weight: "weight bfloat16 [64]",
    keys: "cache bfloat16 [B, L, 2, 16]",
) -> "bfloat16 [B, S, 64]; int64 []":
    rms_norm = glmc.rms_norm(x, weight, eps=1e-05)
    return (rms_norm, x)
'''


def test_a_region_reads_back():
    region = Region.parse(TEXT)
    assert region.text() == TEXT
    assert region.kind == "layer"
    assert region.inputs[2] == ("keys", "cache", Spec("bfloat16", ("B", "L", 2, 16)))
    assert region.outputs == (Spec("bfloat16", ("B", "S", 64)), Spec("int64", ()))
    assert Region.parse(region.text()) == region


@pytest.mark.parametrize("text", [
    "", "x = 1", "def f(", TEXT + TEXT, "class f:\n    pass\n", "import os\n",
    TEXT.replace('"value bfloat16 [B, S, 64]"', "64"), TEXT.replace('"weight bfloat16 [64]"', '"weight bfloat16 64"'),
    TEXT.replace('weight: "weight bfloat16 [64]"', "weight"), TEXT.replace("value bf", "secret bf"),
    TEXT.replace(' -> "bfloat16 [B, S, 64]; int64 []"', ""), TEXT.replace("int64 []", "int64"),
    TEXT.replace('"bfloat16 [B, S, 64]; int64 []"', "f()"), TEXT.replace("bfloat16 [64]", "bfloat16 [64"),
    TEXT.replace("x: ", "\0: "), TEXT.replace('"weight bfloat16 [64]"', "print(1)"),
], ids=range(16))
def test_a_text_that_is_no_region_is_damage(text):
    with pytest.raises(DamagedArtifact):
        Region.parse(text)


REGIONS = {"embed_1": Region("embed_1", (("ids", "value", Spec("int64", ("B", "S"))),),
                             (Spec("float32", ("B", "S", 4)),), ("return (ids,)",)),
           "head_1": Region("head_1", (("x", "value", Spec("float32", ("B", "S", 4))),),
                            (Spec("float32", ("B", "S", 9)),), ("return (x,)",))}
WHOLE = Program(REGIONS, (Step("embed_1", ("input:input_ids",), ("value:0",)),
                          Step("head_1", ("value:0",), ("value:1",), "last")), "value:1")


def test_a_program_reads_back():
    data = json.loads(json.dumps(WHOLE.to_json()))
    assert Program.from_json(data, REGIONS) == WHOLE
    assert WHOLE.calls() == 2


def test_a_part_may_have_an_engine_of_its_own():
    part = dataclasses.replace(WHOLE, engine="fx")
    data = json.loads(json.dumps(written({"text": WHOLE, "vision": part})))
    texts = {name: region.text() for name, region in REGIONS.items()}
    assert {name: found.engine for name, found in read(data, texts.__getitem__).items()} == {"text": None, "vision": "fx"}
    with pytest.raises(DamagedArtifact, match="artefact's own engine"):
        read({**data, "engine": "fx"}, texts.__getitem__)


def damaged(change):
    data = json.loads(json.dumps(WHOLE.to_json()))
    change(data)
    return data


@pytest.mark.parametrize(("change", "says"), [
    (lambda d: d.pop("steps"), "lacks a field"),
    (lambda d: d.pop("logits"), "lacks a field"),
    (lambda d: d["steps"][0].pop("rows"), "lacks a field"),
    (lambda d: d.update(steps=7), "lacks a field"),
    (lambda d: d["steps"].append("x"), "lacks a field"),
    (lambda d: d["steps"][0].update(region="layer_9"), "unknown region"),
    (lambda d: d["steps"][1].update(inputs=["value:0", "value:0"]), "number of arguments"),
    (lambda d: d["steps"][1].update(outputs=[]), "number of arguments"),
    (lambda d: d["steps"].reverse(), "before it is made"),
    (lambda d: d["steps"][1].update(inputs=["value:7"]), "before it is made"),
    (lambda d: d.update(logits="value:9"), "makes the logits"),
    (lambda d: d.update(steps=[]), "makes the logits"),
    (lambda d: d.update(engine="aoti"), "unknown engine"),
])
def test_a_program_that_breaks_its_laws_is_damage(change, says):
    with pytest.raises(DamagedArtifact, match=says):
        Program.from_json(damaged(change), REGIONS)
