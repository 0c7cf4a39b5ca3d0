"""A checkpoint folder: one file or shards, every problem at once, private copies, and edits that are noticed."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from glmc.checkpoint.folder import Checkpoint, read_config
from glmc.errors import CheckpointChanged, CheckpointError, ConfigError, DamagedShard, WeightMissing

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def weights():
    torch.manual_seed(0)
    return {"a": torch.randn(4, 6).bfloat16(), "b": torch.randn(3), "c": torch.arange(5), "s": torch.tensor(2.5),
            "e": torch.empty(0, 3), "f8": torch.randn(8).to(torch.float8_e4m3fn), "t": torch.tensor([True, False])}


def single(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "glm4"}')
    save_file(weights(), folder / "model.safetensors")
    return folder


def write_index(folder, mapped, **metadata):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": metadata, "weight_map": mapped}))


def sharded(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "glm4"}')
    tensors = weights()
    save_file({"a": tensors["a"], "b": tensors["b"]}, folder / ONE)
    rest = {name: value for name, value in tensors.items() if name not in "ab"}
    save_file(rest, folder / TWO)
    mapped = {name: ONE if name in "ab" else TWO for name in tensors}
    write_index(folder, mapped, total_size=sum(t.numel() * t.element_size() for t in tensors.values()))
    return mapped


@pytest.mark.parametrize("make", [single, sharded])
def test_reads_every_tensor_as_the_library_does(tmp_path, make):
    make(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.config == {"model_type": "glm4"}
    assert set(checkpoint.tensors) == set(weights())
    for name, value in weights().items():
        found = checkpoint.read(name)
        assert found.dtype == value.dtype
        assert found.shape == value.shape
        assert torch.equal(found.reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8))
    checkpoint.check_unchanged()
    with pytest.raises(WeightMissing):
        checkpoint.read("nothing")


def test_the_layout_of_the_hub_cache_is_accepted(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    single(blobs)
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).symlink_to(os.path.relpath(blobs / name, snapshot))
    assert torch.equal(Checkpoint.open(snapshot).read("a"), weights()["a"])


def test_a_private_copy_survives_the_file(tmp_path):
    single(tmp_path)
    kept = Checkpoint.open(tmp_path).read("a")
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate(10)
    assert torch.equal(kept, weights()["a"])


def test_config_alone(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "glm4"}')
    assert read_config(tmp_path) == read_config(tmp_path / "config.json") == {"model_type": "glm4"}
    with pytest.raises(CheckpointError, match="no safetensors weights"):
        Checkpoint.open(tmp_path)
    (tmp_path / "config.json").write_text('{"a": 1, "a": 2}')
    with pytest.raises(ConfigError):
        read_config(tmp_path)
    with pytest.raises(ConfigError):
        read_config(tmp_path / "absent.json")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        Checkpoint.open(tmp_path / "absent")


def _index(**changes):
    def change(folder, mapped):
        write_index(folder, {**mapped, **changes})
    return change


def _drop(name):
    def change(folder, mapped):
        write_index(folder, {key: value for key, value in mapped.items() if key != name})
    return change


def _raw(text):
    def change(folder, mapped):
        (folder / "model.safetensors.index.json").write_text(text)
    return change


BROKEN = {
    "missing shard": (lambda folder, mapped: (folder / TWO).unlink(), [TWO]),
    "truncated shard": (lambda folder, mapped: os.truncate(folder / TWO, 60), [TWO]),
    "shard is a pipe": (lambda folder, mapped: ((folder / TWO).unlink(), os.mkfifo(folder / TWO)), [TWO, "regular"]),
    "path up": (_index(a="../" + ONE), ["plain file name"]),
    "absolute path": (_index(a="/etc/x.safetensors"), ["plain file name"]),
    "hidden": (_index(a=".x.safetensors"), ["plain file name"]),
    "pickle": (_index(a="pytorch_model.bin"), ["plain file name"]),
    "control characters": (_index(a="\x1b[2J.safetensors"), ["plain file name"]),
    "wrong shard": (_index(a=TWO), [f"a: stands in {ONE}, but the index says {TWO}"]),
    "tensor nowhere": (_index(z=ONE), ["z: the index says"]),
    "tensor not in the index": (_drop("b"), ["b: stands in"]),
    "tensor twice": (lambda folder, mapped: save_file({"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(1)},
                                                     folder / ONE), [f"c: stands in {ONE}", "c: stands in"]),
    "total size": (lambda folder, mapped: write_index(folder, mapped, total_size=7), ["total_size"]),
    "total size is text": (lambda folder, mapped: write_index(folder, mapped, total_size="7"), ["total_size"]),
    "extra shard": (lambda folder, mapped: shutil.copy(folder / ONE, folder / "model-00003-of-00003.safetensors"),
                    ["model-00003-of-00003"]),
    "two problems": (_index(a=TWO, z=ONE), ["a: stands in", "z: the index says"]),
    "map a list": (_raw('{"weight_map": []}'), ["weight_map"]),
    "map empty": (_raw('{"weight_map": {}}'), ["weight_map"]),
    "map of numbers": (_raw('{"weight_map": {"a": 1}}'), ["weight_map"]),
    "metadata a list": (_raw('{"weight_map": {"a": "x.safetensors"}, "metadata": []}'), ["metadata"]),
    "tensor mapped twice": (_raw('{"weight_map": {"a": "%s", "a": "%s"}}' % (ONE, TWO)), ["twice"]),  # noqa: UP031
}


@pytest.mark.parametrize(("change", "said"), BROKEN.values(), ids=BROKEN)
def test_broken_index(tmp_path, change, said):
    change(tmp_path, sharded(tmp_path))
    with pytest.raises(DamagedShard) as caught:
        Checkpoint.open(tmp_path)
    for text in said:
        assert text in str(caught.value)
    assert all(c.isprintable() or c == "\n" for c in str(caught.value))


def _edit(path):
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")


def _replace(path):
    shutil.copy2(path, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


CHANGES = {"edit": _edit, "replace": _replace, "truncate": lambda path: os.truncate(path, 40),
           "delete": lambda path: path.unlink(), "touch": os.utime}


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_meanwhile_is_noticed(tmp_path, change, name):
    single(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}" + " " * 60)
    (tmp_path / "README.md").write_text("x")
    checkpoint = Checkpoint.open(tmp_path)
    (tmp_path / "README.md").write_text("other")
    checkpoint.check_unchanged()
    state = os.stat(tmp_path / name)
    while True:  # until the clock of the file system has moved on
        (tmp_path / "clock").write_text("x")
        if os.stat(tmp_path / "clock").st_ctime_ns > state.st_ctime_ns:
            break
    change(tmp_path / name)
    with pytest.raises(CheckpointChanged):
        checkpoint.check_unchanged()
    if name == "model.safetensors":
        with pytest.raises(CheckpointChanged):
            checkpoint.read("a")


def test_extra_files_by_allow_list(tmp_path):
    single(tmp_path)
    for name in ("tokenizer.json", "chat_template.jinja", "modeling_glm.py", "pytorch_model.bin", "training_args.pt"):
        (tmp_path / name).write_text("{}")
    assert sorted(Checkpoint.open(tmp_path).extra_files()) == ["chat_template.jinja", "tokenizer.json"]
    (tmp_path / "merges.txt").mkdir()
    with pytest.raises(CheckpointError, match="regular"):
        Checkpoint.open(tmp_path).extra_files()


def test_the_digest_follows_the_content_and_not_the_place(tmp_path):
    first, second = Checkpoint.open(single(tmp_path / "x")), Checkpoint.open(single(tmp_path / "y"))
    assert first.digest() == second.digest()
    (tmp_path / "y" / "config.json").write_text('{"model_type": "glm"}')
    assert Checkpoint.open(tmp_path / "y").digest() != first.digest()
