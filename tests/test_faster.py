"""Fuse if faster on the whole road: what was timed stands in the ledger, what is slower in no region, and both are shown."""

from __future__ import annotations

import json
from collections import Counter

import models
import pytest
import racing
from typer.testing import CliRunner

import glmc
from glmc import build
from glmc.cli.main import app
from glmc.passes.contenders import Race
from glmc.passes.faster import CONTENDERS, Judge, beside
from glmc.passes.lower import Bounds
from glmc.survey import survey
from glmc.target import named

GPU = "cuda:sm_90"
KEPT = ("rms_norm", "rope", "silu_mul")


def script(fusion, bucket):
    """All but KEPT are slower; Inductor beats ours at prompts, and fails elsewhere."""
    figures = racing.FAST if fusion in KEPT else racing.SLOW
    return {**figures, "inductor": "InductorError: no compiler" if bucket.decode else 1.0}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """A dense and a routed layer for a GPU whose figures come from a script."""
    _, _, checkpoint = models.published("glm4_moe", num_hidden_layers=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "judge_for", lambda target, bounds, done: racing.judge(script, bounds)[0])
        return glmc.compile(checkpoint, tmp_path_factory.mktemp("out") / "x.glmc", target=GPU, max_len=8)


def test_the_ledger_holds_what_was_timed(artifact):
    rows = {row["fusion"]: row for row in artifact.json("ledger.json")["ledger"]}
    for fusion, row in rows.items():
        if not row["proved"]:
            assert (row["basis"], row["timings"], row["measured_us"]) == ("predicted", [], None)
        elif fusion in KEPT:
            assert row["taken"] > 0
            assert row["measured_us"] == pytest.approx(3.0 * row["taken"])
            assert row["predicted_us"] > 0
            assert sum(site["taken"] for site in row["timings"]) == row["taken"]
        else:
            assert (row["taken"], row["measured_us"]) == (0, None)
            assert {r["reason"] for r in row["refused"]} - {"crosses the cut between head and layer.1",
                                                            "crosses the cut between layer.0 and layer.1"} == {
                "slower here: decode, 1 row: ours 5 us, plain steps 2 us"}
        for site in row["timings"]:
            assert row["basis"] == "measured"
            assert 0 < site["taken"] <= site["sites"] if fusion in KEPT else site["taken"] == 0
            assert [b["bucket"] for b in site["buckets"]] == ["decode, 1 row", "prefill, 8 tokens"]
            for bucket in site["buckets"]:
                assert {f"{name}_us" for name in CONTENDERS} | {"spread_us", "reasons"} < set(bucket)
    assert {"split_qkv_norm_rope", "qk_norm_rope", "rms_norm", "rope"} <= {f for f, row in rows.items() if row["timings"]}, \
        "what takes over was timed as well"


def test_what_is_slower_stands_in_no_region(artifact):
    texts = "".join(artifact.read(name).decode() for name in artifact.files if name.endswith(".region"))
    counts = Counter(name for name in ("rms_norm", "rope", "silu_mul", "split_qkv_norm_rope", "qk_norm_rope", "attention",
                                       "moe_experts", "moe_route", "add_rms_norm") if f"glmc.{name}(" in texts)
    assert set(counts) == set(KEPT)


def test_the_notes_tell_of_inductor(artifact):
    notes = artifact.json("ledger.json")["notes"]
    assert any(note.startswith("rms_norm: Inductor's code for the steps is faster") for note in notes)
    assert any(note == "rope: not timed, Inductor: decode, 1 row: InductorError: no compiler" for note in notes)
    assert not any("predicted" in note for note in notes)


def test_inspect_shows_it(artifact):
    done = CliRunner().invoke(app, ["inspect", str(artifact.folder)])
    assert done.exit_code == 0
    for said in ("measured gain", "timed on the device", "prefill, 8 tokens", "smaller fusions", "slower here: decode, 1 row"):
        assert said in done.stdout, said
    told = json.loads(CliRunner().invoke(app, ["inspect", str(artifact.folder), "--json"]).stdout)
    assert told["ledger"] == artifact.json("ledger.json")["ledger"]


def test_its_proofs_are_of_what_is_taken(artifact):
    assert {p["fusion"] for p in artifact.json("proofs.json")["proofs"]} == set(KEPT)


@pytest.mark.parametrize(("value", "reason"), [
    pytest.param("0", "GLMC_TIMING=0", marks=pytest.mark.slow), ("", "torch sees no GPU here")])
def test_untimed_gains_are_predicted_and_a_note_says_why(tmp_path, monkeypatch, value, reason):
    monkeypatch.setenv("GLMC_TIMING", value)
    monkeypatch.setenv("GLMC_ONLY", "rope")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    _, _, checkpoint = models.published("glm", num_hidden_layers=1)
    made = glmc.compile(checkpoint, tmp_path / "x.glmc", target=GPU, max_len=4).json("ledger.json")
    assert f"gains are predicted, no fusion was timed: {reason}" in made["notes"]
    assert {(row["basis"], row["measured_us"]) for row in made["ledger"]} == {("predicted", None)}


def test_a_plan_is_predicted(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(models.tiny_config("glm", num_hidden_layers=1)))
    plan = glmc.plan(tmp_path / "config.json", target=GPU)
    assert {row["basis"] for row in plan.to_json()["ledger"]} == {"predicted"}
    done = CliRunner().invoke(app, ["plan", str(tmp_path / "config.json"), "--target", GPU])
    assert "predicted gain" in done.stdout
    assert "measured gain" not in done.stdout


def test_a_fusion_of_which_a_site_was_not_timed_has_no_measured_gain(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(models.tiny_config("glm4_moe", num_hidden_layers=2)))
    seen = []

    def once(fusion, bucket):
        seen.append(fusion)
        return racing.FAST if fusion != "silu_mul" or seen.count("silu_mul") <= 3 else {"inputs": "too large"}

    judge, _ = racing.judge(once)
    rows = survey(tmp_path / "config.json", named("fx"), judge=judge).ledger.rows
    assert len(rows["silu_mul"].timings) == 2
    assert (rows["silu_mul"].measured_us, rows["silu_mul"].basis) == (None, "measured")
    assert rows["rms_norm"].measured_us > 0


def tower(tmp_path, judge, target=GPU):
    """The ledger of a small vision model, of one block and one layer, timed by a judge."""
    config = models.tiny_config("glm4v")
    config = {**config, "vision_config": {**config["vision_config"], "depth": 1},
              "text_config": {**config["text_config"], "num_hidden_layers": 1}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return survey(tmp_path / "config.json", named(target), "float32", judge=judge)


def test_a_vision_tower_is_timed_at_sizes_of_its_own(tmp_path):
    def slow_images(fusion, bucket):
        return racing.SLOW if "F" in bucket.sizes and fusion == "silu_mul" else racing.FAST

    judge, _ = racing.judge(slow_images, Bounds(1, 8))
    surveyed = tower(tmp_path, judge)
    rows = surveyed.ledger.rows
    kinds = {tuple(b["bucket"] for b in site["buckets"]) for row in rows.values() for site in row.timings}
    assert kinds == {("decode, 1 row", "prefill, 8 tokens"), ("image, 32 patches",)}
    refused = [r for r in rows["silu_mul"].refused if r["reason"].startswith("slower here: image, 32 patches")]
    assert refused
    assert all("visual" in r["site"] for r in refused)
    text = [r for r in surveyed.decisions if r.site.fusion == "silu_mul" and r.reason is None]
    assert len(text) == rows["silu_mul"].taken == 1
    assert rows["silu_mul"].measured_us == 3.0, "a tower does not run for a token"
    assert not any("not timed, inputs" in note for note in surveyed.notes)


def test_the_pieces_of_a_tower_run_at_those_sizes(tmp_path):
    """On the CPU, by the wall clock: every contender of every piece."""
    target, images = named("fx"), tuple(b for b in beside(Bounds(1, 8)) if "F" in b.sizes)
    race = Race(target, racing.Wall(), "eager")
    surveyed = tower(tmp_path, Judge(images, race), target.name)
    timed = [site["buckets"] for row in surveyed.ledger.rows.values() for site in row.timings]
    own = [b for (b, *_) in timed if b["bucket"] == "image, 32 patches"]
    assert len(own) > 2
    assert all(b["ours_us"] and b["plain_us"] and not b["reasons"] for b in own), own
    assert {b["reasons"]["inputs"] for (b, *_) in timed if b["bucket"] == "no bucket"} == {"none has the sizes B, L, M, S"}
