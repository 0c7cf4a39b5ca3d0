"""Every example runs: those that use an artefact end to end, the trainers for two steps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import models
import pytest
from house.source import imported

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(*command: object, cwd: Path) -> str:
    """The script's standard output; its standard error is shown when it fails."""
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=600, cwd=cwd,
                          check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("demo")
    out = folder / "tiny.glmc"
    return out, run(EXAMPLES / "demo.py", "--target", "fx", "--keep", out, cwd=folder)


def test_demo_prints_ledger_and_text(artifact: tuple[Path, str]) -> None:
    out, printed = artifact
    assert (out / "manifest.json").is_file()
    table = [line.split() for line in printed.splitlines() if line.startswith("  ")]
    rows = {words[0]: words[1:] for words in table if len(words) == 5}
    assert rows["qk_norm_rope"] == ["8", "8", "0", "8"]
    assert rows["split_qkv_norm_rope"] == ["4", "4", "4", "0"]
    assert rows["rms_norm"][:2] == ["17", "17"]
    assert "God" in printed
    assert "tokens," in printed


def test_the_little_model_knows_its_text(artifact: tuple[Path, str]) -> None:
    """Perplexity on text in the style it learnt is far below the vocabulary's 2048: the weights mean something."""
    import torch

    import glmc

    model = glmc.load(artifact[0])
    ids = model.text.encode("And the LORD spake unto Moses, saying, Speak unto the children of Israel, and say unto them,")
    logits = model.logits(torch.tensor([ids]))[0]
    loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]))
    assert loss.exp() < 40
    answer = model.generate("And the LORD spake unto", max_new_tokens=3, raw=True)
    assert "Moses" in answer.text


def test_transformers_generate(artifact: tuple[Path, str], tmp_path: Path) -> None:
    lines = run(EXAMPLES / "transformers_generate.py", artifact[0], cwd=tmp_path).splitlines()
    assert any(line.startswith("And God said,") for line in lines)
    assert any(line.startswith("Blessed is the man") for line in lines)


@pytest.mark.slow  # tests/test_backend.py has what it shows
def test_torch_compile(tmp_path: Path) -> None:
    printed = run(EXAMPLES / "torch_compile.py", cwd=tmp_path)
    assert all(float(line.rsplit(" ", 1)[1]) < 1e-4 for line in printed.splitlines()[:3])
    assert "graph 0/1: 107 steps, 1 open sizes, rewritten" in printed
    assert "qk_norm_rope: proved 4," in printed


def test_onnx_alone(tmp_path: Path) -> None:
    """It writes what glmc writes, and imports neither glmc nor torch."""
    made = models.made("glm4_moe", target="onnx")
    source = (EXAMPLES / "onnx_alone.py").read_text()
    named = {name.split(".")[0] for _, name in imported("examples/onnx_alone.py", source)} - sys.stdlib_module_names
    assert named == {"numpy", "onnxruntime", "tokenizers"}
    answer = made.session.generate("Hello", max_new_tokens=9, raw=True)
    printed = run(EXAMPLES / "onnx_alone.py", made.out, "Hello", "--tokens", "9", cwd=tmp_path)
    assert printed.startswith("Hello" + answer.text)
    assert len(answer.token_ids) == 9


def test_train_tiny(tmp_path: Path) -> None:
    run(EXAMPLES / "train_tiny.py", "--steps", "2", "--out", tmp_path / "ck", cwd=tmp_path)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in (tmp_path / "ck").iterdir()}


def test_see(tmp_path: Path) -> None:
    """The little model names every picture and clip that the example draws; the videos go through MP4 files."""
    lines = [line for line in run(EXAMPLES / "see.py", "--keep", tmp_path, cwd=tmp_path).splitlines() if "drawn: " in line]
    assert len(lines) == 5
    for line in lines:
        said, drawn = line.split("'")[1], line.split("drawn: ")[1].split(";")[0]
        assert said == drawn
    assert (tmp_path / "yellow-square-blue.mp4").stat().st_size > 1000


def test_train_seeing(tmp_path: Path) -> None:
    run(EXAMPLES / "train_seeing.py", "--steps", "2", "--batch", "2", "--out", tmp_path / "ck", cwd=tmp_path)
    made = {p.name for p in (tmp_path / "ck").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "preprocessor_config.json"} <= made
