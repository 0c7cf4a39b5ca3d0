"""Tiny quantised checkpoints of every format, compiled, beside transformers with the decoded weights; and what must not pass.

The survey of the architecture is made once: it depends on no weight.
"""

import dataclasses
import functools
import json

import models
import pytest
import quantised
import torch
from typer.testing import CliRunner

import glmc
from glmc import build, families, survey
from glmc.artifact import Artifact
from glmc.checkpoint.folder import Checkpoint, read_config
from glmc.checkpoint.scheme import scheme_of
from glmc.cli.main import app
from glmc.errors import SchemeMismatch, WeightMismatch, WeightMissing, WeightNotFinite
from glmc.streamed import Streamed
from glmc.target import named

SPARED = ("layers.1.self_attn.q_proj", "shared_experts", "layers.0.mlp.down_proj")
LISTED = ("model.norm", "model.layers.1.mlp.gate", "model.layers.1.mlp.gate.e_score_correction_bias",
          "model.layers.0.self_attn.q_proj.bias", "model.layers.2*", "model.layers.2.eh_proj", "re:model.layers.2", "*norm")


@functools.cache
def known(target, dtype):
    return survey.survey(quantised.written("quark").folder, named(target), dtype)


@pytest.fixture(autouse=True)
def surveyed_once(monkeypatch):
    def again(source, target, dtype, *_):
        config = read_config(source)
        found = known(target.name, survey.dtype_of(config, dtype, target))
        return dataclasses.replace(found, config=config, dims=families.load(config).read(config), notes=list(found.notes))
    monkeypatch.setattr(build, "survey", again)


def compiled(folder, tmp_path, **options):
    glmc.compile(folder, tmp_path / "x.glmc", **{"target": "fx", "dtype": "float32", "max_len": 40, **options})
    return glmc.load(tmp_path / "x.glmc")


def agrees(made, session):
    ids = models.prompts(made.config["vocab_size"], 9)[0]
    expected = models.logits(made.reference, ids)
    assert expected.abs().max() > 0.5
    assert (session.logits(torch.tensor([ids]))[0] - expected).abs().max() <= 1e-4
    assert session.generate(ids, max_new_tokens=8).token_ids == models.greedy(made.reference, ids, 8)


@pytest.mark.parametrize("kind", quantised.KINDS)
def test_logits_and_tokens_are_those_of_the_decoded_weights(tmp_path, kind):
    made = quantised.written(kind)
    agrees(made, compiled(made.folder, tmp_path))


@functools.cache
def mixed(kind="quark"):
    """Some projections are left in bfloat16, beside quantised ones that they are joined with; a draft layer, in two shards."""
    return quantised.written(kind, spared=SPARED, listed=LISTED, shards=2, draft=True)


@pytest.mark.parametrize("kind", ["quark", "modelopt"])
def test_plain_projections_beside_quantised_ones_and_a_draft_layer(tmp_path, kind):
    made = mixed(kind)
    session = compiled(made.folder, tmp_path)
    agrees(made, session)
    artifact = session.artifact
    said = artifact.json("ledger.json")["notes"]
    assert any("layers [2] predict further tokens and are left out" in note for note in said)
    assert any("expanded to the dtype" in note for note in said)
    left = artifact.manifest["left_unused"]
    assert "model.layers.2.eh_proj.weight" in left
    assert ("model.layers.0.self_attn.k_proj.input_scale" in left) is (kind == "modelopt")
    assert session.dims["quantised"] == made.config["quantization_config"]["quant_method"]
    tells_where_tensors_went(made, artifact)


def tells_where_tensors_went(made, artifact):
    sources = artifact.json("sources.json")
    forms, unread = sources["forms"], sources["unread"]
    method = made.config["quantization_config"]["quant_method"]
    assert forms.keys() == {"BF16", "F32", {"quark": "MX4", "modelopt": "NV4"}[method]}
    assert sources["read"] + unread["count"] == len(made.stored)
    assert unread["count"] == len(artifact.manifest["left_unused"])
    experts = next(one for one in sources["parameters"] if one["parameter"].endswith("experts.gate_up_proj"))
    assert experts["layers"] == "1"
    assert "model.layers.{}.mlp.experts.[0-7].gate_proj.weight_scale" in experts["from"]
    assert "model.layers.2.eh_proj.weight" in unread["tensors"]
    done = CliRunner().invoke(app, ["inspect", str(artifact.folder)])
    assert done.exit_code == 0
    assert "unread" in done.stdout


@pytest.mark.parametrize("kind", ["quark", "fp8", "modelopt"])
def test_the_native_engine_takes_them_and_verify_agrees(tmp_path, kind):
    made = quantised.written(kind)
    session = compiled(made.folder, tmp_path, target="cpu")
    agrees(made, session)
    done = CliRunner().invoke(app, ["verify", str(tmp_path / "x.glmc"), "--against", str(made.folder), "--json"])
    assert done.exit_code == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)["against"]
    assert (answer["first"], answer["same_checkpoint"]) == (None, True)


def test_verify_reads_by_itself_what_lies_in_the_file():
    made = mixed("modelopt")
    streamed = Streamed(Checkpoint.open(made.folder), torch.float32)
    ids = models.prompts(made.config["vocab_size"], 9)[0]
    assert (streamed.run(torch.tensor([ids]), streamed.cache())[0] - models.logits(made.reference, ids)).abs().max() < 1e-5


def recipes(made, entries=None, stored=None, folder=None):
    """What `compile` does before it reads a weight, with other entries or other tensors."""
    source = made.folder
    config = made.config
    if entries is not None or stored is not None:
        said = config["quantization_config"]
        listed = next(kind.listed for kind in quantised.KINDS.values() if kind.listed in said)
        config = {**config, "quantization_config": {**said, listed: said[listed] if entries is None else entries}}
        source = quantised.put(folder, made.stored if stored is None else stored, config)
    checkpoint = Checkpoint.open(source)
    found = build.survey(source, named("fx"), "float32", None)
    return build._recipes(found, checkpoint, scheme_of(checkpoint.config))


def test_rounded_once_to_bfloat16():
    made = mixed()
    checkpoint, found = Checkpoint.open(made.folder), recipes(made)
    for name in ("model.layers.1.self_attn.qkv_proj.weight", "model.layers.1.mlp.experts.down_proj", "lm_head.weight"):
        whole = torch.empty(found[name].shape(checkpoint.tensors))
        half = whole.bfloat16()
        found[name].fill(checkpoint, whole)
        found[name].fill(checkpoint, half)
        assert torch.equal(half, whole.bfloat16())


NOT_LINEAR = ("model.embed_tokens", *LISTED)


def test_every_entry_taken_away_is_missed(tmp_path):
    """An entry of the list that stands for a projection cannot go; one that stands for something else changes nothing."""
    made = mixed()
    entries = made.config["quantization_config"]["exclude"]
    plain = recipes(made)
    for i, entry in enumerate(entries):
        rest = [e for e in entries if e != entry]
        if entry in NOT_LINEAR:
            assert recipes(made, rest, folder=tmp_path / str(i)) == plain
            continue
        with pytest.raises(SchemeMismatch) as caught:
            recipes(made, rest, folder=tmp_path / str(i))
        assert f"{entry}.weight: has no scale, and no entry of exclude excludes it (model.safetensors)" in str(caught.value)


@pytest.mark.parametrize("entry", ["model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.qkv_proj", "*.gate_up_proj",
                                   "re:.*o_proj", "model.layers.1.mlp.experts", "*experts.3.down_proj"])
def test_every_entry_added_is_missed(tmp_path, entry):
    made = mixed()
    entries = made.config["quantization_config"]["exclude"]
    with pytest.raises(SchemeMismatch) as caught:
        recipes(made, [*entries, entry], folder=tmp_path / "x")
    assert f"has a scale, and the entry {entry} of exclude excludes it" in str(caught.value)


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.k_proj", "model.layers.1.mlp.experts.5.up_proj"])
def test_every_projection_that_changed_its_kind_is_missed(tmp_path, name):
    made = mixed()
    stored = {k: v for k, v in made.stored.items() if not k.startswith(f"{name}.weight")}
    stored[f"{name}.weight"] = quantised.plain(made.decoded[f"{name}.weight"], wide=False)[0]
    with pytest.raises(SchemeMismatch, match="has no scale") as caught:
        recipes(made, stored=stored, folder=tmp_path / "plain")
    assert name in str(caught.value)
    spared = "model.layers.1.self_attn.q_proj"
    stored = made.stored | quantised.mx4(made.decoded[f"{spared}.weight"].numpy(), f"{spared}.weight")[0]
    with pytest.raises(SchemeMismatch, match=f"{spared}.weight: has a scale"):
        recipes(made, stored=stored, folder=tmp_path / "quantised")
    other = made.stored | quantised.f8(made.decoded[f"{name}.weight"].numpy(), f"{name}.weight")[0]
    with pytest.raises(SchemeMismatch, match="is F8, and the configuration says MX4"):
        recipes(made, stored=other, folder=tmp_path / "other")


def test_an_entry_that_names_nothing(tmp_path):
    made = mixed()
    entries = made.config["quantization_config"]["exclude"]
    with pytest.raises(SchemeMismatch) as caught:
        recipes(made, [*entries, "model.layers.1.mlp.gates", "*.q_projj"], folder=tmp_path / "x")
    for entry in ("model.layers.1.mlp.gates", "*.q_projj"):
        assert f"{entry}: an entry of exclude that names nothing in the checkpoint" in str(caught.value)


def test_scales_that_the_configuration_does_not_speak_of(tmp_path):
    made = mixed()
    config = {k: v for k, v in made.config.items() if k != "quantization_config"}
    folder = quantised.put(tmp_path / "in", made.stored, config)
    with pytest.raises(SchemeMismatch, match="says nothing of it") as caught:
        compiled(folder, tmp_path)
    assert caught.value.field == "quantization_config"
    assert not (tmp_path / "x.glmc").exists()


DOWN = "model.layers.0.mlp.gate_proj.weight"
DAMAGED = {
    "no scale": (lambda s: s.pop(f"{DOWN}_scale"), WeightMissing, DOWN),
    "turned scale": (lambda s: s.update({f"{DOWN}_scale": ("U8", s[f"{DOWN}_scale"][1][::-1], s[f"{DOWN}_scale"][2])}),
                     WeightMismatch, f"{DOWN}_scale"),
    "odd width": (lambda s: s.update({DOWN: ("U8", (96, 31), s[DOWN][2][:96 * 31])}), WeightMismatch, DOWN),
    "another shape": (lambda s: s.update({DOWN: ("U8", (48, 32), s[DOWN][2][:48 * 32]),
                                          f"{DOWN}_scale": ("U8", (48, 2), s[f"{DOWN}_scale"][2][:96])}), WeightMismatch, None),
    "no number": (lambda s: s.update({f"{DOWN}_scale": ("U8", s[f"{DOWN}_scale"][1], s[f"{DOWN}_scale"][2][:-1] + b"\xff")}),
                  WeightNotFinite, f"{DOWN}_scale"),
}


@pytest.mark.parametrize(("damage", "error", "field"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_checkpoint_leaves_nothing_behind(tmp_path, damage, error, field):
    made = quantised.written("quark")
    stored = dict(made.stored)
    damage(stored)
    folder = quantised.put(tmp_path / "in", stored, made.config)
    with pytest.raises(error) as caught:
        compiled(folder, tmp_path)
    assert caught.value.field == field
    assert DOWN in str(caught.value) or "gate_up_proj" in str(caught.value)
    assert caught.value.exit == 3
    assert not (tmp_path / "x.glmc").exists()
    if field:
        assert caught.value.file == folder / "model.safetensors"


def test_an_artefact_says_what_it_was_made_from(tmp_path):
    made = quantised.written("channel")
    compiled(made.folder, tmp_path)
    told = json.loads(CliRunner().invoke(app, ["inspect", str(tmp_path / "x.glmc"), "--json"]).stdout)
    assert told["sources"] == Artifact.open(tmp_path / "x.glmc").json("sources.json")
    assert told["sources"]["unread"] == {"count": 0, "tensors": []}
