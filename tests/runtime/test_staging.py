"""Weights loaded through staging buffers equal those loaded into the CPU's memory, whatever the sizes; damage is found."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from glmc.artifact import Artifact
from glmc.artifact_write import ArtifactWriter
from glmc.checkpoint.folder import Checkpoint
from glmc.errors import DamagedArtifact, StorageError
from glmc.runtime import staging
from glmc.runtime.staging import Staging

CPU = torch.device("cpu")
SIZES = {"large": (70_001,), "rows": (123, 77), "empty": (0, 3), "one": (), **{f"small.{n}": (n,) for n in range(1, 60)}}


def weights(kind):
    draw = torch.Generator().manual_seed(5)
    return {f"{kind}.{name}": torch.randn(shape, generator=draw).to(torch.bfloat16 if len(name) % 2 else torch.float32)
            for name, shape in SIZES.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An artefact of several weight files and a linked one."""
    place = tmp_path_factory.mktemp("staging")
    source = place / "checkpoint"
    source.mkdir()
    (source / "config.json").write_text(json.dumps({"model_type": "glm4"}))
    save_file(weights("linked"), source / "model.safetensors", metadata={"format": "pt"})
    opened, own = Checkpoint.open(source), weights("own")
    with ArtifactWriter(place / "x.glmc") as writer:
        names = {torch.float32: "F32", torch.bfloat16: "BF16"}
        sink = writer.weights([(name, names[t.dtype], tuple(t.shape)) for name, t in own.items()], 40_000)
        writer.link({name: opened.info(name) for name in weights("linked")}, opened)
        for name, tensor in own.items():
            sink.write(name, tensor)
        writer.seal({"glmc": "0.1.0"}, check=opened.check_unchanged)
    assert len(Artifact.open(place / "x.glmc").shards()) > 2
    return place / "x.glmc"


def agrees(found):
    wanted = weights("own") | weights("linked")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
        assert found[name].data_ptr() % 64 == 0 or not tensor.numel()


@pytest.mark.parametrize("piece", [37, 64, 1000, 1 << 20])
@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_staged_is_what_was_written(folder, piece, threads):
    agrees(Artifact.open(folder).load_weights(threads, Staging(CPU, piece)))


def test_a_buffer_is_not_filled_again_before_its_copy_is_made(folder, monkeypatch):
    """A device that copies as late as it may: when it is waited for."""
    late = {}

    def copy(buffer, into):
        assert buffer not in late, "a buffer was sent off twice"
        late[buffer] = into

    def wait(buffer):
        if buffer in late:
            into = late.pop(buffer)
            into.copy_(buffer.tensor[:len(into)])

    monkeypatch.setattr(staging.Buffer, "copy", copy)
    monkeypatch.setattr(staging.Buffer, "wait", wait)
    agrees(Artifact.open(folder).load_weights(2, Staging(CPU, 512)))
    assert not late, "the weights were handed out before the last copies were made"


def test_damage_is_found_on_the_way_to_the_device(folder, tmp_path):
    for pattern in ("weights-00002*", "linked-*"):
        copied = shutil.copytree(folder, tmp_path / pattern.strip("*"))
        file = next(copied.glob(pattern))
        data = bytearray(file.read_bytes())
        data[-5] ^= 1
        file.chmod(0o644)
        file.write_bytes(data)
        with pytest.raises(DamagedArtifact, match=file.name):
            Artifact.open(copied).load_weights(2, Staging(CPU, 512))


def test_page_locked_memory_that_cannot_be_had_is_told(folder, monkeypatch):
    """On this machine there is none to be had, which is what a GPU's driver may say too."""
    if torch.cuda.is_available():
        pytest.skip("this machine has page-locked memory")
    with pytest.raises(StorageError, match="page-locked"):
        staging.Buffer(64, stream=object())
