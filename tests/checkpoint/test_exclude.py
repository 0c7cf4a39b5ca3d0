"""Exclude lists: SGLang's recorded answers, globs as Quark means them, fused names by recipes, and many entries at once."""

import fnmatch
import json
import re
import time
from pathlib import Path

import models
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmc import families
from glmc.checkpoint.exclude import Excludes, fused_modules
from glmc.checkpoint.recipe import Concatenate, Take
from glmc.errors import ConfigError

TABLE = json.loads((Path(__file__).parents[1] / "data" / "sglang" / "quark_exclude_match.json").read_text())
ENTRIES = tuple(TABLE["exclude"])
DISPUTED = "model.layers.78.mlp.experts"
"""The recorded versions disagree on it: one takes an excluded expert for all of them, the other for none."""


def fused_by(last: dict[str, list[str]], name: str) -> dict[str, tuple[str, ...]]:
    """The fused modules that a map of last components makes of one name."""
    parent, _, own = name.rpartition(".")
    return {name: tuple(f"{parent}.{part}" for part in last[own])} if own in last else {}


@pytest.mark.parametrize("asked", TABLE["results"])
def test_as_recorded_from_sglang(asked):
    _, last, name = asked.split("|")
    recorded, fused = TABLE["results"][asked], fused_by(TABLE["maps"][last], name)
    if isinstance(recorded, str):
        for globs in (False, True):
            with pytest.raises(ConfigError) as caught:
                Excludes(ENTRIES, globs=globs).excluded(name, fused)
        assert caught.value.field == name
        assert "q_a_proj" in caught.value.found
    elif name == DISPUTED:
        assert TABLE["results"][f"sglang_0_5_11|{last}|{name}"] is not TABLE["results"][f"sglang_0_5_23|{last}|{name}"]
        experts = tuple(f"{name}.{e}.{part}_proj" for e in range(4) for part in ("gate", "up"))
        with pytest.raises(ConfigError):
            Excludes(ENTRIES, globs=False).excluded(name, {name: experts})
        assert Excludes((*ENTRIES, *experts), globs=False).excluded(name, {name: experts})
    else:
        assert Excludes(ENTRIES, globs=False).excluded(name, fused) is recorded
        assert Excludes(ENTRIES).excluded(name, fused) is (recorded or name.endswith("self_attn.o_proj"))


NAMES = st.from_regex(r"(model\.)?(layers\.\d\.)?(mlp|self_attn)(\.[a-c]{1,3}_proj)?", fullmatch=True)
GLOBS = st.one_of(NAMES, st.from_regex(r"\*?(model|mlp)?\.?[a-c*?]{0,4}(\[a-b\])?\*?", fullmatch=True).filter(bool))


@settings(max_examples=100, deadline=None)
@given(st.sets(NAMES, max_size=12), st.lists(st.one_of(GLOBS, NAMES.map(lambda n: f"re:{re.escape(n[:4])}")), max_size=6))
def test_a_scan_is_each_entry_tried_on_each_name(names, entries):
    def hits(entry, name):
        return re.match(entry[3:], name) is not None if entry.startswith("re:") else fnmatch.fnmatchcase(name, entry)

    found, idle = Excludes(tuple(entries)).scan(names)
    assert set(found) == {name for name in names if any(hits(entry, name) for entry in entries)}
    assert all(hits(entry, name) for name, entry in found.items())
    assert set(idle) == {entry for entry in entries if not any(hits(entry, name) for name in names)}
    literal = Excludes(tuple(e for e in entries if not e.startswith("re:")), globs=False)
    assert set(literal.scan(names)[0]) == names & set(literal.entries)


def test_a_literal_of_fp8_names_what_lies_below_it():
    names = ["visual.blocks.0.attn", "visual", "visuals.x", "lm_head"]
    assert set(Excludes(("visual",), below=True).scan(names)[0]) == {"visual", "visual.blocks.0.attn"}
    assert set(Excludes(("visual",)).scan(names)[0]) == {"visual"}


def test_a_pattern_that_is_none_is_named():
    with pytest.raises(ConfigError) as caught:
        Excludes(("re:(a",)).scan(["a"])
    assert "re:(a" in caught.value.found


def test_what_published_lists_call_otherwise():
    listed = Excludes(("model.layers.0.self_attn.indexers_proj", "model.layers.1.mlp.gate"))
    names = ["model.layers.0.self_attn.indexer.weights_proj", "model.language_model.layers.1.mlp.gate"]
    assert set(listed.scan(names)[0]) == set(names)


@pytest.mark.parametrize(("name", "others"), [
    ("model.language_model.layers.1.mlp.gate", ["model.layers.1.mlp.gate", "language_model.model.layers.1.mlp.gate"]),
    ("model.visual.merger.proj", ["visual.merger.proj"]), ("lm_head", ["language_model.lm_head"]),
    ("model.visual.blocks.0.attn.qkv", ["visual.blocks.0.attn.qkv", "visual.blocks.0.attn.qkv_proj",
                                        "model.visual.blocks.0.attn.qkv_proj", "re:visual\\..*qkv_proj$", "visual.*qkv"]),
])
def test_a_name_in_every_spelling(name, others):
    for entry in (name, *others):
        found, idle = Excludes((f"{entry}x", entry)).scan([name, "model.language_model.layers.1.mlp.experts"])
        assert (found, idle) == ({name: entry}, [f"{entry}x"])


def tiny_recipes():
    config = models.tiny_config("glm4_moe")
    family = families.load(config)
    dims = family.read(config)
    names = ["lm_head.weight", "model.embed_tokens.weight", "model.layers.1.mlp.gate.e_score_correction_bias"]
    names += [f"model.layers.1.self_attn.{p}_proj.{kind}" for p in "qkv" for kind in ("weight", "bias")]
    names += [f"model.layers.1.mlp.experts.{p}_proj" for p in ("gate_up", "down")]
    made = {name: family.recipe(name, dims) for name in names}
    for kind in ("weight", "bias"):
        made[f"model.layers.1.self_attn.qkv_proj.{kind}"] = Concatenate(
            [made[f"model.layers.1.self_attn.{p}_proj.{kind}"] for p in "qkv"])
    return made


def test_fused_names_come_from_recipes():
    fused = fused_modules(tiny_recipes())
    at, experts = "model.layers.1.self_attn", "model.layers.1.mlp.experts"
    assert set(fused) == {f"{at}.qkv_proj", experts, f"{experts}.gate_up_proj", f"{experts}.down_proj"}
    assert fused[f"{at}.qkv_proj"] == (f"{at}.q_proj", f"{at}.k_proj", f"{at}.v_proj")
    assert fused[f"{experts}.gate_up_proj"] == tuple(f"{experts}.{e}.{p}_proj" for e in range(8) for p in ("gate", "up"))
    assert len(fused[experts]) == 24


@pytest.mark.parametrize("entry", ["model.layers.1.self_attn.qkv_proj", "*.qkv_proj", "re:.*qkv", "model.layers.1.mlp.experts",
                                   "*.experts", "model.layers.1.mlp.experts.*"])
def test_an_entry_that_names_a_fused_module_excludes_what_it_is_made_from(entry):
    fused = fused_modules(tiny_recipes())
    parts = {part for whole in fused.values() for part in whole}
    found = Excludes((entry,)).over(parts, fused)
    expected = {part for part in parts if ("self_attn" in part) is ("qkv" in entry)}
    assert set(found) & parts == expected
    assert set(found.values()) == {entry}
    assert Excludes((entry,)).idle([f"{part}.weight" for part in parts], fused, 3) == []


@pytest.mark.parametrize("entry", ["*gate*", "re:.*gate", "*.gate_*", "*experts.[0-9].gate_p*"])
def test_an_entry_that_names_modules_means_no_fused_one(entry):
    fused = fused_modules(tiny_recipes())
    parts = fused["model.layers.1.mlp.experts"]
    assert set(Excludes((entry,)).over(parts, fused)) == {part for part in parts if "gate_proj" in part}


def test_a_name_stands_before_another_spelling_of_one():
    names = ["model.language_model.norm", "model.norm"]
    assert Excludes(("model.norm",)).scan(names)[0] == {"model.norm": "model.norm"}
    assert Excludes(("model.norm",)).scan(reversed(names))[0] == {"model.norm": "model.norm"}


def test_a_tied_head_is_the_embedding():
    fused = fused_modules({"lm_head.weight": Take("model.embed_tokens.weight")})
    assert Excludes(("lm_head",)).over(["model.embed_tokens"], fused)["model.embed_tokens"] == "lm_head"


@pytest.mark.parametrize(("entry", "idle"), [
    ("model.layers.1.mlp.down_proj", False), ("model.layers.1.mlp.down_proj.weight", False), ("model.layers.1.mlp", False),
    ("model.layers.1.mlp.gate_proj.bias", True), ("model.layers.1.mlp.typo_proj", True), ("model.layers.1*", False),
    ("model.layers.2.mlp.typo*", True), ("re:.*typo", True), ("re:.*mlp", False), ("model.layers.3.eh_proj", False),
    ("model.layers.3*", False), ("model.layers.4.mlp.gate", False), (r"re:model\.layers\.3\..*", False), ("mtp.fc", False),
    ("visual.blocks.0.attn.qkv_proj", True), ("model.visual*", True), ("vision", True), ("lm_head", True), ("*", False),
])
def test_what_names_nothing(entry, idle):
    tensors = [f"model.layers.{n}.mlp.down_proj.weight" for n in range(3)]
    assert Excludes((entry,)).idle(tensors, {}, layers=3) == ([entry] if idle else [])


def test_thousands_of_entries_over_every_module_of_glm_45():
    parts = ("gate", "up", "down")
    modules = [f"model.layers.{n}.mlp.experts.{e}.{p}_proj" for n in range(92) for e in range(160) for p in parts]
    entries = (*modules[:20_000:4], *(f"model.layers.{n}.self_attn*" for n in range(92)), "model.layers.91.mlp.experts.1*")
    began = time.perf_counter()
    found, idle = Excludes(entries).scan(modules)
    assert time.perf_counter() - began < 5
    assert len(found) == 5000 + 3 * (1 + 10 + 60)
    assert len(idle) == 92
