"""`glmc verify --against`: an equal artefact agrees everywhere, a wrong one is told by the path of the module at fault."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import shutil

import models
import once
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import glmc
from glmc import build, survey
from glmc.artifact_write import ArtifactWriter
from glmc.cli.main import app
from glmc.families import glm4_moe
from glmc.runtime.engines import fx
from glmc.target import named

ROUTED = "glm4_moe"
LAYER = "model.layers."


def call(*words: object):
    return CliRunner().invoke(app, ["verify", *map(str, words)])


def told(out, checkpoint, code):
    """The comparison as JSON; the exit code is `code`."""
    done = call(out, "--against", checkpoint, "--json")
    assert done.exit_code == code, done.stdout + done.stderr
    return json.loads(done.stdout)["against"]


def verdicts(answer):
    return {row["module"]: row["verdict"] for row in answer["rows"]}


@functools.cache
def surveyed(checkpoint, dtype):
    return survey.survey(checkpoint, named("fx"), dtype)


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """Compile an edited copy of the routed model's checkpoint; edit(tensors) changes tensors, `config` fields."""
    def make(edit=lambda tensors: None, dtype="float32", program=lambda p: p, **config):
        original = models.published(ROUTED, dtype)[2]
        copied = shutil.copytree(original, tmp_path / "edited")
        tensors = load_file(copied / "model.safetensors")
        edit(tensors)
        save_file(tensors, copied / "model.safetensors", {"format": "pt"})
        if config:
            fields = json.loads((copied / "config.json").read_text())
            (copied / "config.json").write_text(json.dumps({**fields, **config}))
        else:
            known = surveyed(original, dtype)
            programs = {**known.programs, "text": program(known.program)}
            monkeypatch.setattr(build, "survey", lambda *_: dataclasses.replace(known, programs=programs))
        monkeypatch.setattr(build, "prove", once.proofs)
        glmc.compile(copied, tmp_path / "x.glmc", target="fx", max_len=32)
        monkeypatch.undo()
        return tmp_path / "x.glmc", original
    return make


@pytest.mark.parametrize(("family", "dtype"), [("glm", "float32"), ("glm4", "float32"), ("glm4_moe", "float32"),
                                               ("glm4_moe", "bfloat16")])  # a dense one in bfloat16: see the native library
def test_an_equal_artefact_agrees(family, dtype):
    made = models.made(family, dtype)
    answer = told(made.out, made.checkpoint, 0)
    found = verdicts(answer)
    assert (answer["first"], answer["same_checkpoint"], len(answer["tokens"])) == (None, True, 16)
    modules = ["model.embed_tokens", "model.rotary_emb", *(f"{LAYER}{i}" for i in range(3)), "lm_head", "logits"]
    assert list(found) == modules
    judged = {v for m, v in found.items() if (m, family, dtype) != ("logits", "glm4_moe", "bfloat16")}
    assert judged == {"agrees"}
    if (family, dtype) == ("glm4_moe", "bfloat16"):
        assert found["logits"] == "not judged"
        assert any("nearly equal experts" in note for note in answer["notes"])


@pytest.mark.parametrize("variant", ["glm4_moe-odd", "glm4_moe-no-qk-norm"])
def test_an_equal_artefact_of_a_variant_agrees(variant):
    made = models.made(variant)
    assert told(made.out, made.checkpoint, 0)["first"] is None


def test_an_indexer_has_to_choose_and_its_choice_is_compared():
    made = models.made("glm_moe_dsa", target="cpu")
    answer = told(made.out, made.checkpoint, 0)
    assert len(answer["tokens"]) > made.config["index_topk"] + 13
    assert verdicts(answer)[f"{LAYER}1.self_attn.indexer"] == "agrees"
    assert answer["first"] is None


def test_what_aoti_compiled_agrees():
    made = models.aot()
    assert told(made.out, made.checkpoint, 0)["first"] is None


@pytest.mark.parametrize(("variant", "dtype"), [("glm4_moe", "float32"), ("glm4", "bfloat16"), ("glm4_moe_lite", "float32")])
def test_the_native_library_agrees(variant, dtype):
    made = models.made(variant, dtype, target="cpu")
    assert told(made.out, made.checkpoint, 0)["first"] is None


def test_a_quantised_artefact_does_not_agree_and_says_where(tmp_path):
    _, _, checkpoint = models.published("glm4")
    glmc.compile(checkpoint, tmp_path / "small.glmc", quant="int4", max_len=40)
    answer = told(tmp_path / "small.glmc", checkpoint, 7)
    assert answer["first"].startswith("model.layers.0.self_attn")


def test_nearly_equal_experts_are_no_divergence():
    made = models.made(ROUTED, "bfloat16")
    from glmc.against import against

    answer = against(made.session.artifact, made.checkpoint, seed=1)
    assert answer.first is None
    assert sum(row.ties for row in answer.rows) == 1, "this seed was chosen for its tie; find another that has one"


def scaled(name, by=1.01):
    def edit(tensors):
        tensors[name] = tensors[name] * by
    return edit


def swapped(first, second):
    def edit(tensors):
        tensors[first], tensors[second] = tensors[second], tensors[first]
    return edit


@pytest.mark.parametrize(("edit", "module"), [
    (scaled("model.layers.2.self_attn.o_proj.weight"), "model.layers.2.self_attn.o_proj"),
    (scaled("model.layers.1.self_attn.q_proj.bias", 0.0), "model.layers.1.self_attn.q_proj"),
    (scaled("model.layers.0.self_attn.v_proj.weight"), "model.layers.0.self_attn.v_proj"),
    (swapped("model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"), "model.layers.0.mlp.gate_proj"),
    (scaled("model.layers.0.mlp.down_proj.weight"), "model.layers.0.mlp.down_proj"),
    (scaled("model.layers.1.mlp.experts.3.down_proj.weight", 1.1), "model.layers.1.mlp.experts"),
    (scaled("model.layers.2.mlp.gate.e_score_correction_bias", -1.0), "model.layers.2.mlp.gate"),
    (scaled("model.layers.2.mlp.shared_experts.up_proj.weight"), "model.layers.2.mlp.shared_experts.up_proj"),
    (scaled("model.layers.1.self_attn.k_norm.weight"), "model.layers.1.self_attn"),  # fused away: what is around it
    (scaled("model.layers.1.input_layernorm.weight"), "model.layers.1.input_layernorm"),
    (scaled("model.layers.0.post_attention_layernorm.weight"), "model.layers.0.post_attention_layernorm"),
    (scaled("model.embed_tokens.weight"), "model.embed_tokens"),
    (scaled("model.norm.weight"), "model.norm"),
    (scaled("lm_head.weight"), "lm_head"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_a_wrong_weight_is_named(compiled, edit, module):
    answer = told(*compiled(edit), 7)
    assert answer["first"] == module
    step = re.match(r"model\.layers\.\d+|.*", module)[0].replace("model.norm", "lm_head")
    assert [m for m, v in verdicts(answer).items() if v == "diverges"] == [step, "logits"], "only that step"


@pytest.mark.parametrize(("config", "module"), [
    ({"rms_norm_eps": 0.01}, "model.layers.0.input_layernorm"),
    ({"rope_theta": 5e5}, "model.rotary_emb"),
    ({"routed_scaling_factor": 2.4}, "model.layers.1.mlp.gate"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_a_wrong_scalar_is_named(compiled, config, module):
    answer = told(*compiled(**config), 7)
    assert answer["first"] == module
    assert not answer["same_checkpoint"]


def test_a_wrong_line_between_modules_is_laid_to_what_is_around_it(compiled):
    def wrong(program):
        texts = {n: r.text().replace("x_3, scale=0.25)", "x_3, scale=0.2)") for n, r in program.regions.items()}
        assert any(texts[n] != r.text() for n, r in program.regions.items())
        parsed = {n: type(r).parse(texts[n]) for n, r in program.regions.items()}
        return dataclasses.replace(program, regions=parsed)
    assert told(*compiled(program=wrong), 7)["first"] == "model.layers.0.self_attn"


def test_a_wrong_recipe_is_seen(compiled, monkeypatch):
    """The published model is not loaded by our recipes, or a wrong one would be wrong on both sides."""
    right = glm4_moe.recipe

    def wrong(name, dims):
        made = right(name, dims)
        if not name.endswith("layers.1.mlp.experts.gate_up_proj"):
            return made
        return dataclasses.replace(made, sources=tuple(dataclasses.replace(s, sources=s.sources[::-1]) for s in made.sources))
    monkeypatch.setattr(glm4_moe, "recipe", wrong)
    assert told(*compiled(), 7)["first"] == "model.layers.1.mlp.experts"


def test_a_wrong_weight_in_bfloat16_is_named(compiled):
    answer = told(*compiled(scaled("model.layers.2.self_attn.o_proj.weight", 1.1), "bfloat16"), 7)
    assert answer["first"] == "model.layers.2.self_attn.o_proj"


def test_wrong_code_of_a_right_text_is_told(monkeypatch):
    made, right = models.made("glm"), fx.open

    def wrong(artifact, region, form, device):
        run = right(artifact, region, form, device)
        if (region.kind, form) != ("layer", "decode"):
            return run
        return lambda inputs: tuple(t * 1.001 for t in run(inputs))
    monkeypatch.setattr(fx, "open", wrong)
    answer = told(made.out, made.checkpoint, 7)
    assert answer["first"] == "model.layers.0"
    assert any("the region's text agrees where it can be compared" in note and "decode" in note for note in answer["notes"])


def test_people_see_a_table_and_a_sentence(compiled):
    out, checkpoint = compiled(scaled("model.layers.2.self_attn.o_proj.weight"))
    done = call(out, "--against", checkpoint)
    assert done.exit_code == 7
    assert "first divergent module: model.layers.2.self_attn.o_proj" in done.stdout
    assert re.search(r"model\.layers\.1 .* agrees", done.stdout)
    assert re.search(r"model\.layers\.2 .* diverges", done.stdout)
    assert "error: the artefact and the published model differ" in done.stderr


def test_another_checkpoint_of_the_same_architecture_is_told_first(tmp_path):
    made = models.made("glm")
    other = models.save(models.randomised({**made.config, "rope_theta": 9999.0}, seed=5), {**made.config, "rope_theta": 9999.0},
                        tmp_path)
    done = call(made.out, "--against", other)
    assert done.exit_code == 7
    assert done.stderr.startswith("note: the artefact was compiled from another checkpoint")
    assert "first divergent module: model.embed_tokens" in done.stdout


@pytest.mark.parametrize(("variant", "field"), [("glm4", "model_type"), ("glm-tied-no-bias", "layers")])
def test_another_architecture_is_refused(variant, field):
    done = call(models.made("glm").out, "--against", models.published(variant)[2], "--json")
    assert done.exit_code == 4
    error = json.loads(done.stdout)["error"]
    assert (error["code"], error["field"]) == ("incompatible-artifact", field)


@pytest.mark.parametrize("places", [None, {"version": 99, "regions": {}}])
def test_an_artefact_without_readable_places_is_refused(tmp_path, places):
    made = models.made("glm")
    artifact = made.session.artifact
    program = {k: v for k, v in artifact.json("program.json").items() if k != "places"}
    with ArtifactWriter(tmp_path / "old.glmc") as writer:
        weights = artifact.load_weights()
        layout = [(n, {torch.float32: "F32"}[t.dtype], tuple(t.shape)) for n, t in weights.items()]
        into = writer.weights(layout)
        for name, tensor in weights.items():
            into.write(name, tensor)
        for name in artifact.files:
            if name not in ("program.json", *artifact.shards()):
                writer.add_bytes(name, artifact.read(name))
        writer.add_json("program.json", program | ({"places": places} if places else {}))
        kept = {k: v for k, v in artifact.manifest.items() if k not in ("magic", "format_version", "files", "digest")}
        writer.seal(kept)
    done = call(tmp_path / "old.glmc", "--against", made.checkpoint)
    assert done.exit_code == 4
    assert "places" in done.stderr


def test_nothing_at_the_path_is_a_usage_error(tmp_path):
    assert call(models.made("glm").out, "--against", tmp_path / "none").exit_code == 2


def test_a_device_without_a_comparison_is_refused():
    done = call(models.made("glm").out, "--device", "npu-emulated")
    assert done.exit_code == 2
    assert "for comparing" in done.stderr
