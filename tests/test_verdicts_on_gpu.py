"""Bad input on a GPU: each gets its verdict from loading and `inspect`, before weights are read, and harms nothing after it."""

from __future__ import annotations

import json

import models
import pytest
import torch
from elsewhere import changed
from typer.testing import CliRunner

import glmc
from glmc import gpu
from glmc.artifact import Artifact
from glmc.cli.main import app
from glmc.errors import DamagedArtifact, IncompatibleArtifact
from glmc.kernels import driver
from glmc.program import KERNELS
from glmc.runtime.memory import cache_bytes
from glmc.runtime.opened import read_programs
from glmc.target import TARGETS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
MAX_LEN, MAX_BATCH = 16_384, 32
"""So large a cache that memory can be filled up to less than it needs."""


def compiled(target, folder):
    config, model, checkpoint = models.published("glm4", num_hidden_layers=1, max_position_embeddings=MAX_LEN)
    return config, model, glmc.compile(checkpoint, folder, target=target, max_len=MAX_LEN, max_batch=MAX_BATCH)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dense layer for the GPU that is here: its config, the published model, the artefact."""
    return compiled(gpu.name_of(0), tmp_path_factory.mktemp("verdicts") / "x.glmc")


@pytest.fixture
def unread(monkeypatch):
    """Reading a weight fails the test."""
    monkeypatch.setattr("glmc.runtime.device.Staging", lambda *_: pytest.fail("weights were read"))


@pytest.fixture(autouse=True)
def unharmed(made):
    """After each test the intact artefact still gives transformers' tokens."""
    yield
    torch.cuda.empty_cache()
    config, model, artifact = made
    (ids,) = models.prompts(config["vocab_size"], 9)
    assert glmc.load(artifact.folder).generate(ids, max_new_tokens=4).token_ids == models.greedy(model, ids, 4)


def inspected(folder):
    done = CliRunner().invoke(app, ["inspect", str(folder), "--json"])
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)["here"]


def test_it_runs_here(made):
    assert inspected(made[2].folder) == "runs"
    report = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert report["targets"][gpu.name_of(0)]["here"] == "runs"
    assert report["gpus"][0]["target"] == gpu.name_of(0)
    assert 0 < report["gpus"][0]["free_bytes"] <= report["gpus"][0]["total_bytes"]


@pytest.mark.parametrize("target", [name for name, target in TARGETS.items() if target.gpu and name.startswith("cuda")])
def test_an_artefact_of_another_architecture(made, target, tmp_path, unread):
    if target == gpu.name_of(0):
        pytest.skip("that is the GPU here")
    artifact = compiled(target, tmp_path / "other.glmc")[2]
    with pytest.raises(IncompatibleArtifact, match="compiled for another GPU") as fault:
        glmc.load(artifact.folder)
    assert fault.value.hint == f"compile it again with --target {gpu.name_of(0)}"
    assert inspected(artifact.folder).startswith("refused: the artefact was compiled for another GPU")


def test_an_older_driver(made, monkeypatch, unread):
    needed = int(made[2].json(KERNELS)["cuda"].partition(".")[0])
    assert driver.version() >= (needed, 0), "else nothing would have run"
    monkeypatch.setattr(driver, "version", lambda: (needed - 1, 9))
    with pytest.raises(IncompatibleArtifact, match="driver is older"):
        glmc.load(made[2].folder)
    assert f"found CUDA {needed - 1}.9; install a newer driver" in inspected(made[2].folder)


def test_a_gpu_that_is_nearly_full(made, unread):
    artifact, held = made[2], []
    needed = artifact.weight_bytes() + cache_bytes(read_programs(artifact)["text"], artifact.manifest)
    piece = 1 << 33
    while piece >= 1 << 21:
        try:
            held.append(torch.empty(piece, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            piece //= 4
    free = torch.cuda.mem_get_info(0)[0]
    assert free < needed, (free, needed)
    with pytest.raises(IncompatibleArtifact, match="do not fit the device's free memory"):
        glmc.load(artifact.folder)
    assert "free memory there" in inspected(artifact.folder)


def test_kernels_that_this_version_has_otherwise_are_compiled_when_they_start(made, tmp_path):
    config, model, artifact = made
    index = artifact.json(KERNELS)
    for number, kernel in enumerate(k for k in index["kernels"] if "add_rms_norm" in k["kernel"]):
        kernel.update(source="of another version", digest=f"{number:016x}")
    folder = changed(artifact, tmp_path / "x.glmc", KERNELS, json.dumps(index).encode(), sealed=True)
    told = "runs after a rebuild of these kernels: add_rms_norm_kernel"
    assert inspected(folder) == told
    with pytest.warns(UserWarning, match=told):
        session = glmc.load(folder)
    (ids,) = models.prompts(config["vocab_size"], 7)
    assert session.generate(ids, max_new_tokens=4).token_ids == models.greedy(model, ids, 4)


def test_a_truncated_kernel(made, tmp_path, unread):
    artifact = made[2]
    name = f"kernels/{artifact.json(KERNELS)['kernels'][0]['name']}.cubin"
    data = artifact.read(name)
    with pytest.raises(DamagedArtifact, match="another size"):
        glmc.load(changed(artifact, tmp_path / "x.glmc", name, data[:len(data) // 2], sealed=False))


def test_a_kernel_that_was_sealed_truncated_is_refused_by_the_driver(made, tmp_path):
    artifact = made[2]
    entry = next(k for k in artifact.json(KERNELS)["kernels"] if "add_rms_norm" in k["kernel"])
    folder, data = artifact.folder, artifact.read(f"kernels/{entry['name']}.cubin")
    for number, kernel in enumerate(k for k in artifact.json(KERNELS)["kernels"] if k["kernel"] == entry["kernel"]):
        at = tmp_path / f"{number}.glmc"
        folder = changed(Artifact.open(folder), at, f"kernels/{kernel['name']}.cubin", data[:128], sealed=True)
    with pytest.raises(IncompatibleArtifact, match="the driver refuses a kernel") as fault:
        glmc.load(folder).generate([5, 9, 7], max_new_tokens=2)
    assert fault.value.field == entry["kernel"].rpartition(".")[2]


def test_a_gpu_that_is_not_there(made, unread):
    with pytest.raises(IncompatibleArtifact, match="no such GPU here") as fault:
        glmc.load(made[2].folder, device="cuda:7" if torch.cuda.device_count() <= 7 else f"cuda:{torch.cuda.device_count()}")
    assert fault.value.found.startswith(f"{torch.cuda.device_count()} GPUs")
