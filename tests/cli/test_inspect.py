"""`glmc inspect` and `glmc verify` on a small sealed artefact: complete, damaged, and sealed with fields missing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from glmc.artifact_write import ArtifactWriter
from glmc.cli.main import app

REGION = """def head_0(
    x0: "value float32 [B, S, 4]",
    weight: "weight float32 [4]",
) -> "float32 [B, S, 4]":
    mul = aten.mul.Tensor(x0, weight)
    return (mul,)
"""
PROGRAM = {"regions": ["head_0"], "logits": "value:0",
           "steps": [{"region": "head_0", "inputs": ["input:input_ids", "weight:norm"], "outputs": ["value:0"],
                      "rows": "last"}]}
LEDGER = {"notes": [], "ledger": [
    {"fusion": "rms_norm", "expected": 3, "proved": 3, "taken": 3, "refused": [], "predicted_us": 2.5,
     "measured_us": None}]}
PROOFS = {"proofs": [{"fusion": "rms_norm", "shapes": {}, "scalars": {}, "kernel_error": error, "reference_error": 2e-7,
                      "places": 2} for error in (1e-7, 3e-7)]}
MANIFEST = {
    "glmc": "0.1.0", "torch": "2.13.0", "family": "glm4", "target": "cpu", "engine": "aoti", "dtype": "float32",
    "machine": {"arch": "x86_64", "cpu_flags": ["avx2"]}, "dims": {"model_type": "glm4", "layers": 2},
    "bounds": {"max_len": 96, "max_batch": 3}, "source": "0" * 64, "left_unused": [], "seconds": {}}


def sealed(folder, manifest=MANIFEST, ledger=LEDGER):
    """An artefact without weights."""
    with ArtifactWriter(folder) as writer:
        writer.add_json("program.json", PROGRAM)
        writer.add_json("ledger.json", ledger)
        writer.add_json("proofs.json", PROOFS)
        writer.add_bytes("regions/head_0.region", REGION.encode())
        writer.seal(manifest)
    return folder


def call(*words: str):
    return CliRunner().invoke(app, list(words))


def test_inspect_shows_everything(tmp_path):
    done = call("inspect", str(sealed(tmp_path / "x.glmc")))
    assert (done.exit_code, done.stderr) == (0, "")
    for said in ("3 rows of at most 96 tokens", "head_0", "rms_norm", "3e-07", "program.json", "x86_64 with avx2"):
        assert said in done.stdout


def test_inspect_json(tmp_path):
    told = json.loads(call("inspect", str(sealed(tmp_path / "x.glmc")), "--json").stdout)
    assert told["manifest"]["bounds"] == MANIFEST["bounds"]
    assert (told["program"], told["ledger"], told["proofs"]) == (PROGRAM, LEDGER["ledger"], PROOFS["proofs"])


def test_inspect_and_verify_import_no_torch(tmp_path):
    folder = str(sealed(tmp_path / "x.glmc"))
    code = ("import sys\nfrom typer.testing import CliRunner\nfrom glmc.cli.main import app\n"
            f"codes = [CliRunner().invoke(app, [verb, {folder!r}]).exit_code for verb in ('inspect', 'verify')]\n"
            "print(*codes, *[m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["0", "0"], done.stdout + done.stderr


def test_verify(tmp_path):
    folder = sealed(tmp_path / "x.glmc")
    done = call("verify", str(folder))
    assert done.exit_code == 0
    assert "4 files" in done.stdout
    assert "3e-07" in done.stdout
    told = json.loads(call("verify", str(folder), "--json").stdout)
    assert (told["files"], told["proofs"]) == (4, PROOFS["proofs"])


@pytest.mark.parametrize("verb", ["inspect", "verify"])
def test_a_flipped_byte_is_damage(tmp_path, verb):
    folder = sealed(tmp_path / "x.glmc")
    target = folder / "proofs.json"
    target.chmod(0o644)
    target.write_bytes(target.read_bytes().replace(b"e-07", b"e-09", 1))
    done = call(verb, str(folder), "--json")
    assert done.exit_code == 4
    assert json.loads(done.stdout)["error"]["code"] == "damaged-artifact"


@pytest.mark.parametrize("options", [{"manifest": {}}, {"ledger": {}}, {"ledger": {"ledger": [{}]}},
                                     {"manifest": {**MANIFEST, "bounds": 3}}])
def test_an_intact_file_that_lacks_a_field_is_damage(tmp_path, options):
    done = call("inspect", str(sealed(tmp_path / "x.glmc", **options)))
    assert done.exit_code == 4
    assert "Traceback" not in done.stderr


def test_inspect_tells_what_was_noted_while_compiling(tmp_path):
    said = "part vq runs on engine fx: the native engine cannot run vq_embed_0: a convolution"
    done = call("inspect", str(sealed(tmp_path / "x.glmc", ledger={**LEDGER, "notes": [said]})))
    assert done.exit_code == 0
    assert "part vq runs on engine fx" in done.stdout
