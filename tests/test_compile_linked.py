"""`glmc compile --weights link`: the same numbers as those of the copied artefact, out of the checkpoint's own files."""

import dataclasses
import functools
import json
import os
import shutil
from types import SimpleNamespace

import models
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import glmc
import glmc.build as building
from glmc.artifact import Artifact
from glmc.artifact_linked import summary
from glmc.checkpoint.linkable import linkable
from glmc.checkpoint.pack import Want
from glmc.checkpoint.recipe import Concatenate, Slice, Take, Transpose
from glmc.checkpoint.safetensors_header import TensorInfo
from glmc.cli.main import app
from glmc.errors import DamagedArtifact, StorageError, UsageError

LAYERS = {"fx": 1, "cpu": 2}
SHARED = {"fx": 2, "cpu": 1}  # shards: for the CPU little more than a table is shared


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def split(source, folder):
    """The checkpoint in two shards."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    homes = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(tensors)}
    for file in sorted(set(homes.values())):
        save_file({name: tensors[name].clone() for name, home in homes.items() if home == file}, folder / file)
        os.utime(folder / file, (1e9, 1e9))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))
    return folder


@pytest.fixture(scope="module", params=[("fx", "float32"), ("cpu", "bfloat16")], ids="-".join)
def pair(request, tmp_path_factory):
    """.source (two shards), .copy and .link (artefacts of it), .compile (link again, quickly): one survey serves them all."""
    target, dtype = request.param
    folder = tmp_path_factory.mktemp("linked")
    source = split(models.published("glm4_moe", dtype, num_hidden_layers=LAYERS[target])[2], folder / "checkpoint")
    with pytest.MonkeyPatch.context() as patch:
        surveyed = functools.cache(building.survey)
        patch.setattr(building, "survey", lambda _, target, dtype, *rest: dataclasses.replace(
            found := surveyed(source, target, dtype), notes=list(found.notes)))
        patch.setattr(building, "prove", lambda *_: [])
        patch.setattr(building, "prove_native", lambda *_: [])
        make = functools.partial(glmc.compile, source, target=target, max_len=16)
        copy, link = make(folder / "copy.glmc"), make(folder / "link.glmc", weights="link")
        yield SimpleNamespace(target=target, source=source, copy=copy.folder, link=link.folder, compile=make)


def own_bytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.stat().st_nlink == 1)


@pytest.fixture
def apart(pair, tmp_path):
    """A checkpoint and a linked artefact that a test may spoil."""
    source = shutil.copytree(pair.source, tmp_path / "checkpoint")
    out = tmp_path / "x.glmc"
    glmc.compile(source, out, target=pair.target, max_len=16, weights="link")
    return SimpleNamespace(source=source, out=out)


def logits(folder):
    model = glmc.load(folder)
    return model.logits(torch.tensor(models.prompts(model.dims["vocabulary"], 9)))


def test_the_numbers_are_those_of_the_copy(pair):
    assert torch.equal(logits(pair.link), logits(pair.copy))
    link, copy = Artifact.open(pair.link).load_weights(), Artifact.open(pair.copy).load_weights()
    assert set(link) == set(copy)
    assert all(torch.equal(value, copy[name]) and value.dtype == copy[name].dtype for name, value in link.items())


def test_what_is_shared_takes_no_room(pair):
    link, copy = Artifact.open(pair.link), Artifact.open(pair.copy)
    told = summary(link)
    assert told["files"] == SHARED[pair.target]
    assert sum(link.files[name]["bytes"] for name in link.shards()) < sum(copy.files[name]["bytes"] for name in copy.shards())
    if pair.target == "fx":
        assert told["bytes"] > 50_000
        assert own_bytes(pair.link) < own_bytes(pair.copy) - told["bytes"] / 2
    assert copy.manifest["format_version"] == 1
    assert copy.linked() == ()
    assert all(set(entry) == {"bytes", "sha256"} for entry in copy.files.values())
    sources = [Artifact.open(folder).json("sources.json") for folder in (pair.link, pair.copy)]
    assert sources[0] == sources[1]
    notes = link.json("ledger.json")["notes"]
    assert f"weights linked: {told['tensors']} ({told['bytes']} bytes)" in notes
    why = "each is made of several tensors" if pair.target == "fx" else "the engine reads them in panels"
    assert any(note.startswith("weights copied: ") and note.endswith(why) for note in notes)
    assert not any("linked" in note for note in copy.json("ledger.json")["notes"])


def test_an_edited_byte_is_seen(apart):
    one = Artifact.open(apart.out).linked()[0]
    shard = next(path for path in apart.source.iterdir() if os.path.samefile(path, apart.out / one.file))
    with shard.open("r+b") as file:
        file.seek(one.offset)
        byte = file.read(1)
        file.seek(one.offset)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(DamagedArtifact) as caught:
        glmc.load(apart.out)
    assert caught.value.field == one.name
    done = call("verify", apart.out, "--json")
    told = json.loads(done.stdout)["error"]
    assert (done.exit_code, told["code"], told["field"]) == (4, "damaged-artifact", one.name)


def test_it_outlives_the_checkpoint(pair, apart):
    shutil.rmtree(apart.source)
    assert torch.equal(logits(apart.out), logits(pair.copy))
    assert call("verify", apart.out).exit_code == 0


def test_the_command_line_says_what_is_shared(pair, tmp_path):
    done = call("compile", pair.source, "-o", tmp_path / "x.glmc", "--target", pair.target, "--weights", "link")
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'x.glmc'}\n")
    assert "note: weights linked: " in done.stderr
    done = call("compile", pair.source, "-o", tmp_path / "y.glmc", "--target", pair.target, "--weights", "link", "--json")
    told = json.loads(done.stdout)
    assert told["files"]["linked-00001.safetensors"]["linked"] is True
    assert any(note.startswith("weights linked: ") for note in told["notes"])
    expected = summary(Artifact.open(pair.link))
    shown = " ".join(call("inspect", pair.link).stdout.replace("│", " ").split())
    said = f"{expected['tensors']} weights in {'2 files' if pair.target == 'fx' else 'a file'} shared with the checkpoint"
    assert f"{said}, where no digest covers the other" in shown
    assert "editing the checkpoint in place breaks this artefact" in shown
    assert json.loads(call("inspect", pair.link, "--json").stdout)["linked"] == expected
    assert "shared" not in call("inspect", pair.copy).stdout
    assert f"{said}: every digest agrees" in call("verify", pair.link).stdout
    assert json.loads(call("verify", pair.link, "--json").stdout)["linked"] == expected


def test_across_file_systems_nothing_is_made(pair, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    done = call("compile", pair.source, "-o", tmp_path / "x.glmc", "--target", pair.target, "--weights", "link", "--json")
    told = json.loads(done.stdout)["error"]
    assert (done.exit_code, told["code"]) == (5, "storage")
    assert "--weights copy" in told["hint"]
    assert [path.name for path in tmp_path.iterdir()] == [".x.glmc.lock"]


def test_only_what_is_copied_needs_room(pair, tmp_path, monkeypatch):
    link = Artifact.open(pair.link)
    free = sum(link.files[name]["bytes"] for name in link.shards())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(StorageError, match="not enough space"):
        pair.compile(tmp_path / "x.glmc")
    pair.compile(tmp_path / "x.glmc", weights="link")


def test_an_interrupt_after_linking_leaves_nothing(pair, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "pack", stop)
    with pytest.raises(KeyboardInterrupt):
        pair.compile(tmp_path / "x.glmc", weights="link")
    assert [path.name for path in tmp_path.iterdir()] == [".x.glmc.lock"]
    monkeypatch.undo()


def test_where_nothing_fits_it_is_a_plain_artefact(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "linkable", lambda wanted, tensors: ({}, ["nothing is linked"]))
    made = pair.compile(tmp_path / "x.glmc", weights="link")
    assert set(made.files) == set(Artifact.open(pair.copy).files)
    assert made.manifest["format_version"] == 1
    assert "nothing is linked" in made.json("ledger.json")["notes"]


@pytest.mark.parametrize("word", ["move", "", None, True])
def test_another_word_is_refused(tmp_path, word):
    with pytest.raises(UsageError) as caught:
        glmc.compile(tmp_path, tmp_path / "x.glmc", target="fx", weights=word)
    assert (caught.value.field, caught.value.expected) == ("weights", "copy, link")
    done = call("compile", tmp_path, "-o", tmp_path / "x.glmc", "--weights", "move")
    assert (done.exit_code, list(tmp_path.iterdir())) == (2, [])


def test_why_a_weight_is_copied():
    tensors = {name: TensorInfo(name, None, dtype, (4, 4), 0, 16 * size)
               for name, dtype, size in (("a", "F32", 4), ("b", "F32", 4), ("h", "BF16", 2))}
    whole = Take("a")
    linked, notes = linkable({
        "whole": Want(whole, (4, 4), "F32"), "other dtype": Want(Take("h"), (4, 4), "F32"),
        "rows": Want(Slice(whole, 0, 0, 2), (2, 4), "F32"), "turned": Want(Transpose(whole, 0, 1), (4, 4), "F32"),
        "joined": Want(Concatenate((whole, Take("b"))), (8, 4), "F32")}, tensors)
    assert linked == {"whole": tensors["a"]}
    assert notes == [
        "weights linked: 1 (64 bytes)",
        "weights copied: 2 (96 bytes); each is a part of a tensor, or a tensor turned",
        "weights copied: 1 (128 bytes); each is made of several tensors",
        "weights copied: 1 (64 bytes); they are BF16 in the checkpoint and F32 here"]
