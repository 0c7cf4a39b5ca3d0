"""The page of a program, made of hand-written parts: complete, well-formed, alone, and safe from hostile names."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from glmc.errors import DamagedArtifact
from glmc.html.folded import folded, span
from glmc.html.program import Pictured, program_page
from glmc.html.steps import short, steps
from glmc.program import Region

HOSTILE = "</script><img src=x onerror=alert(1)>'\"&\u202e"
PLAIN = """def layer_before(
    x: "value bfloat16 [B, S, 8]",
    norm_weight: "weight bfloat16 [8]",
    proj_weight: "weight bfloat16 [4, 8]",
) -> "bfloat16 [B, S, 4]":
    size_S = aten.sym_size.int(x, 1)
    pow = aten.pow.Tensor_Scalar(x, 2)
    mul = aten.mul.Tensor(pow, norm_weight)
    linear = aten.linear.default(mul, proj_weight)
    return (linear,)
"""
LAYER = """def layer_after(
    x: "value bfloat16 [B, S, 8]",
    norm_weight: "weight bfloat16 [8]",
    proj_weight: "weight bfloat16 [4, 8]",
) -> "bfloat16 [B, S, 4]":
    rms_norm = glmc.rms_norm(x, norm_weight, eps=1e-05)
    getitem = operator.getitem(rms_norm, 0)
    linear = aten.linear.default(getitem, proj_weight)
    return (linear,)
"""
SHAPES = {"pow": "bfloat16 [B, S, 8]", "mul": "bfloat16 [B, S, 8]", "linear": "bfloat16 [B, S, 4]"}
DRAWING = {
    "version": 1, "target": "cpu",
    "plain": {"layer_before": {"text": PLAIN, "shapes": SHAPES}},
    "regions": {"layer_after": {
        "plain": "layer_before", "shapes": {"rms_norm": "bfloat16 [B, S, 8]", "linear": "bfloat16 [B, S, 4]"},
        "kernels": {"rms_norm": "rms_norm", "linear": "linear"}, "others": "are torch's", "same": {"linear": "linear"},
        "sites": [{"fusion": "rms_norm", "place": "layers.*.norm", "gain_us": 1.5, "line": "rms_norm", "lines": ["pow", "mul"],
                   "reason": None},
                  {"fusion": "silu_mul", "place": "layers.*.mlp", "gain_us": 0.5, "line": None, "lines": ["mul"],
                   "reason": "the kernel is asleep"}]}},
    "sites": [{"fusion": "rms_norm", "place": "layers.*.norm", "count": 5, "layers": "0..4", "reason": None},
              {"fusion": "silu_mul", "place": "layers.*.mlp", "count": 5, "layers": "0..4", "reason": "the kernel is asleep"}]}
LEDGER = [{"fusion": "rms_norm", "expected": 5, "proved": 5, "taken": 5, "refused": [], "predicted_us": 7.5,
           "measured_us": None}]


def program(layers=5, prefix="model"):
    calls = [{"region": "layer_after", "outputs": [f"value:{i}"], "rows": "all",
              "inputs": [f"value:{i - 1}" if i else "input:x", f"weight:{prefix}.layers.{i}.norm.weight",
                         f"weight:{prefix}.layers.{i}.proj.weight"]} for i in range(layers)]
    return {"steps": calls, "regions": ["layer_after"], "logits": f"value:{layers - 1}"}


def page(**changes):
    given = {"title": "a model", "facts": {"digest": "abc"}, "parts": {"text": program()}, "texts": {"layer_after": LAYER},
             "ledger": LEDGER, "drawing": DRAWING} | changes
    return program_page(Pictured(**given))


class Checked(HTMLParser):
    """Every element that is opened is closed, in order; keeps ids, attributes that load something, scripts and texts."""

    VOID = ("meta", "link", "input", "br", "img", "hr")

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.loads, self.tags, self.words = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "srcset", "action", "data") and not value.startswith("#"):
                self.loads.append(value)
            assert not name.startswith("on"), f"a handler in <{tag}>"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_it_holds_all_that_is_known():
    text = page()
    found = Checked(text)
    said = " ".join(found.words)
    for word in ("model.layers.*.norm.weight", "layers 0..4", "layer_after", "layers.*.mlp", "the kernel is asleep", "silu_mul",
                 "2 steps", "bf16 [B, S, 8]", "3 steps became 2 steps, 1 of them fused", "runs rms_norm", "abc"):
        assert word in said, word
    assert said.count("layers.4") == 0, "what repeats is told once"
    assert found.loads == ["data:,"]
    assert not re.search(r"https?:", text)


def test_what_a_fusion_swallowed_has_the_key_of_the_fused_step():
    text = page()
    before, after = ({found[2]: found[1] for found in re.finditer(r'class="n [a-z]+" data-k="(\w*)" data-n="(\w+)"', side)}
                     for side in text.split('<div class="pane after">'))
    assert before["pow"] == before["mul"] == after["rms_norm"] == "s0"
    assert before["linear"] == after["linear"] == "p0"
    assert '<g class="f" data-k="s0">' in text
    assert 'data-lines="mul"' in text, "a refused site can be shown too"


def test_hostile_words_stay_words():
    drawing = json.loads(json.dumps(DRAWING).replace("the kernel is asleep", "HOSTILE").replace("layers.*.mlp", "HOSTILE"))
    drawing = json.loads(json.dumps(drawing), object_hook=lambda d: {k: HOSTILE if v == "HOSTILE" else v for k, v in d.items()})
    layer = LAYER.replace("eps=1e-05", "eps='<b>&'")
    text = page(title=HOSTILE, facts={HOSTILE: HOSTILE}, parts={HOSTILE: program(prefix=HOSTILE) | {"mode": HOSTILE}},
                texts={"layer_after": layer}, drawing=drawing, notes=[HOSTILE],
                ledger=[LEDGER[0] | {"fusion": HOSTILE, "refused": [{"site": "x", "reason": HOSTILE}]}])
    found = Checked(text)
    assert "img" not in found.tags
    assert "b" not in found.tags
    assert found.tags.count("script") == 1
    assert "\u202e" not in text


def test_without_a_drawing_what_runs_is_drawn_and_said_so():
    text = page(drawing={}, ledger=[LEDGER[0] | {"refused": [{"site": "layers.1.x", "reason": "asleep at layers.1.x"},
                                                            {"site": "layers.2.x", "reason": "asleep at layers.2.x"}]}])
    said = " ".join(Checked(text).words)
    assert "no drawing.json" in said
    assert "before the passes only" not in said
    assert "asleep at layers.*.x" in said
    assert '<div class="pane before">' not in text


def test_a_plain_text_that_is_none_is_refused():
    with pytest.raises(DamagedArtifact):
        page(drawing=DRAWING | {"plain": {"layer_before": {"text": "x = (", "shapes": {}}}})


def test_steps_leave_out_sizes_and_follow_picked_results():
    found = {step.name: step for step in steps(Region.parse(LAYER), {})}
    assert list(found) == ["x", "rms_norm", "linear", "return"]
    assert found["linear"].reads == ("rms_norm",)
    assert found["linear"].weights == (("proj_weight", "bfloat16 [4, 8]"),)
    assert "size_S" not in {step.name for step in steps(Region.parse(PLAIN), SHAPES)}
    assert short("bfloat16 [B]; float32 [2]; bool [B]") == "bf16 [B]; f32 [2]; bool [B]"


def test_a_program_is_folded_by_what_repeats():
    regions = {"layer_after": Region.parse(LAYER)}
    (group,) = folded(program(), regions, {"model.layers.3.proj.weight": {"form": "q8"}})
    (call,) = group
    assert (call.count, call.layers, call.elements) == (5, (0, 1, 2, 3, 4), 5 * (8 + 32))
    assert [one.name for one in call.bound] == ["x, layer_after", "model.layers.*.norm.weight", "model.layers.*.proj.weight"]
    assert call.bound[2].form == "q8"


def test_periods_and_moves_are_folded():
    part = program(4)
    for i in (1, 3):
        part["steps"][i] = {"region": "all_gather", "inputs": [f"value:{i - 1}"], "outputs": [f"value:{i}"], "rows": "all",
                            "fixed": {"dim": 1, "after": "T"}}
    (group,) = folded(part, {"layer_after": Region.parse(LAYER)}, {})
    assert [(call.region, call.count) for call in group] == [("layer_after", 2), ("all_gather", 2)]
    assert "2 times, one after another" in page(parts={"text": part})
    assert "dim 1, after T" in page(parts={"text": part})


@pytest.mark.parametrize(("numbers", "said"), [((0, 1, 2), "0..2"), ((5,), "5"), ((3, 1, 4), "1, 3..4"), ((), "")])
def test_numbers_are_told_as_runs(numbers, said):
    assert span(numbers) == said
