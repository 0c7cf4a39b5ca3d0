"""Files that an artefact shares with its checkpoint: what is a weight is covered byte by byte, and nothing else is read."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

import glmc.artifact_linked as linking
from glmc.artifact import Artifact, canonical, manifest_digest
from glmc.artifact_linked import summary
from glmc.artifact_write import ArtifactWriter
from glmc.checkpoint.folder import Checkpoint
from glmc.errors import CheckpointChanged, DamagedArtifact, IncompatibleArtifact, InternalError, StorageError, UsageError

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SHARDS = {ONE: {"a": torch.arange(64.0).reshape(8, 8).bfloat16(), "b": torch.arange(5.0), "none": torch.empty(0, 4)},
          TWO: {"c": torch.arange(32.0) - 7, "idle": torch.arange(3), "s": torch.tensor(2.5)}}
WEIGHTS = {f"w.{name}": tensor for held in SHARDS.values() for name, tensor in held.items() if name != "idle"}
FILES = ["linked-00001.safetensors", "linked-00002.safetensors", "linked.json", "program.json", "weights-00001.safetensors"]


def publish(folder):
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for file, held in SHARDS.items():
        save_file(held, folder / file)
        os.utime(folder / file, (1e9, 1e9))  # clocks of file systems are coarse: an edit is seen at once
    (folder / "model.safetensors.index.json").write_text(json.dumps(
        {"weight_map": {name: file for file, held in SHARDS.items() for name in held}}))
    return folder


def write(out, source, before=lambda: None, after=lambda: None):
    opened = Checkpoint.open(source)
    before()
    with ArtifactWriter(out) as writer:
        writer.add_json("program.json", {"steps": [1, 2]})
        sink = writer.weights([("own", "F32", (3,))])
        writer.link({name: opened.info(name.removeprefix("w.")) for name in WEIGHTS}, opened)
        sink.write("own", torch.ones(3))
        after()
        writer.seal({"glmc": "0.1.0"}, check=opened.check_unchanged)
    return out


@pytest.fixture
def source(tmp_path):
    return publish(tmp_path / "checkpoint")


@pytest.fixture
def out(source, tmp_path):
    return write(tmp_path / "x.glmc", source)


def agrees(folder, threads=None):
    artifact = Artifact.open(folder)
    artifact.verify()
    found = artifact.load_weights(threads)
    assert set(found) == {*WEIGHTS, "own"}
    for name, value in WEIGHTS.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
        assert found[name].data_ptr() % 64 == 0
    return artifact


def test_the_valid_twin(source, out):
    for threads in (1, 2, None):
        artifact = agrees(out, threads)
    assert sorted(artifact.files) == FILES
    assert artifact.manifest["format_version"] == 2
    assert artifact.linked_files() == FILES[:2]
    sizes = [(source / name).stat().st_size for name in (ONE, TWO)]
    assert [artifact.files[name] for name in FILES[:2]] == [{"bytes": size, "linked": True} for size in sizes]
    for name, shard in zip(FILES, (ONE, TWO), strict=False):
        assert not (out / name).is_symlink()
        assert os.path.samefile(out / name, source / shard)
    used = sum(tensor.nbytes for tensor in WEIGHTS.values())
    assert summary(artifact) == {"files": 2, "tensors": 5, "bytes": used, "other_bytes": sum(sizes) - used}
    assert artifact.weight_bytes() == used + artifact.files["weights-00001.safetensors"]["bytes"]
    for act in (artifact.read, artifact.path, artifact.hash_file):
        with pytest.raises(UsageError, match="tensor by tensor"):
            act(FILES[0])


def test_opening_and_verifying_import_no_torch(out):
    code = ("import sys; from glmc.artifact import Artifact; from glmc.artifact_linked import summary; "
            "a = Artifact.open(sys.argv[1]); a.verify(); summary(a); sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code, str(out)], check=False).returncode == 0


def test_every_byte_of_a_weight_is_covered_and_no_other(source, out):
    artifact, covered = Artifact.open(out), 0
    ranges = [(one.file, range(one.offset, one.offset + one.nbytes), one.name) for one in artifact.linked()]
    for file, shard in zip(FILES, (ONE, TWO), strict=False):
        with (source / shard).open("r+b", buffering=0) as handle:  # in place, as somebody who edits the checkpoint would
            for at, byte in enumerate((source / shard).read_bytes()):
                names = [name for home, places, name in ranges if home == file and at in places]
                os.pwrite(handle.fileno(), bytes([byte ^ 4]), at)
                for act in (artifact.verify, lambda: artifact.load_weights(1)):
                    if not names:
                        act()
                        continue
                    with pytest.raises(DamagedArtifact, match=file) as caught:
                        act()
                    assert caught.value.field == names[0]
                    assert "edited in place" in caught.value.hint
                covered += len(names)
                os.pwrite(handle.fileno(), bytes([byte]), at)
    assert covered == sum(tensor.nbytes for tensor in WEIGHTS.values())
    agrees(out)


def test_verify_names_all_that_differ(source, out):
    artifact = Artifact.open(out)
    for shard in (ONE, TWO):
        data = bytearray((source / shard).read_bytes())
        data[-1] ^= 1
        with (source / shard).open("r+b") as file:
            file.write(data)
    with pytest.raises(DamagedArtifact) as caught:
        artifact.verify()
    assert all(said in caught.value.found for said in (FILES[0], FILES[1], "(w.", "w.s"))
    os.chmod(out / "linked.json", 0o644)
    (out / "linked.json").write_bytes((out / "linked.json").read_bytes()[:-1] + b" ")
    with pytest.raises(DamagedArtifact, match=r"linked\.json"):
        Artifact.open(out).verify()


def test_another_size_is_damage(source, out):
    for change in (lambda data: data[:-1], lambda data: data + b"\0"):
        data, opened = (source / TWO).read_bytes(), Artifact.open(out)
        (source / TWO).write_bytes(change(data))
        for act in (lambda: Artifact.open(out), opened.load_weights):
            with pytest.raises(DamagedArtifact, match="another size"):
                act()
        (source / TWO).write_bytes(data)
    agrees(out)


def test_the_artefact_stands_without_its_checkpoint(source, out, tmp_path):
    save_file({"x": torch.ones(4)}, tmp_path / "new")
    os.replace(tmp_path / "new", source / ONE)
    agrees(out)
    shutil.rmtree(source)
    agrees(out)
    agrees(shutil.copytree(out, tmp_path / "y.glmc"))
    (out / FILES[0]).rename(tmp_path / "away")
    (out / FILES[0]).symlink_to(tmp_path / "away")
    with pytest.raises(DamagedArtifact):
        Artifact.open(out)


def test_a_cache_of_symbolic_links_is_followed_to_the_file(source, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    source.rename(blobs)
    snapshot.mkdir()
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(os.path.join("..", "blobs", file.name))
    agrees(write(tmp_path / "x.glmc", snapshot))
    assert os.path.samefile(tmp_path / "x.glmc" / FILES[0], blobs / ONE)


def left(tmp_path):
    assert {p.name for p in tmp_path.iterdir()} <= {".x.glmc.lock", "checkpoint", "spare"}


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOSPC], ids=errno.errorcode.get)
def test_where_no_link_can_be_made(source, tmp_path, monkeypatch, number):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        with pytest.raises(StorageError, match=os.strerror(number)) as caught:
            write(tmp_path / "x.glmc", source)
    assert (caught.value.hint is None) == (number == errno.ENOSPC)
    assert caught.value.hint is None or "--weights copy" in caught.value.hint
    left(tmp_path)
    agrees(write(tmp_path / "x.glmc", source))


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_leaves_nothing(source, tmp_path, monkeypatch, kind):
    for owner, name in ((os, "link"), (linking, "hash_range")):
        for at in (1, 2):
            calls, real = [], getattr(owner, name)

            def act(*args, calls=calls, at=at, real=real, **kwargs):
                calls.append(1)
                if len(calls) == at:
                    raise kind
                return real(*args, **kwargs)

            with monkeypatch.context() as patch:
                patch.setattr(owner, name, act)
                with pytest.raises(kind):
                    write(tmp_path / "x.glmc", source)
            left(tmp_path)
    assert {name: (source / name).stat().st_nlink for name in (ONE, TWO)} == {ONE: 1, TWO: 1}
    agrees(write(tmp_path / "x.glmc", source))


def flip(path):
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\7")


EDITS = {
    "edited": flip,
    "shorter": lambda path: os.truncate(path, path.stat().st_size - 1),
    "replaced": lambda path: (shutil.copy(path, path.parent.parent / "spare"), os.replace(path.parent.parent / "spare", path)),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_a_checkpoint_that_changes_meanwhile(source, tmp_path, edit, when):
    with pytest.raises(CheckpointChanged):
        write(tmp_path / "x.glmc", source, **{when: lambda: edit(source / TWO)})
    left(tmp_path)


def test_a_shard_that_shrinks_while_it_is_read(source, tmp_path, monkeypatch):
    real = linking.hash_range
    monkeypatch.setattr(linking, "hash_range", lambda *rest: (os.truncate(source / TWO, 200), real(*rest))[1])
    with pytest.raises(CheckpointChanged):
        write(tmp_path / "x.glmc", source)
    left(tmp_path)


def forge(folder, change):
    """Change what the files say with `change(manifest, table)`, and make every digest agree again."""
    manifest, table = (json.loads((folder / name).read_bytes()) for name in ("manifest.json", "linked.json"))
    change(manifest, table)
    data = canonical(table)
    if "linked.json" in manifest["files"]:
        manifest["files"]["linked.json"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["digest"] = manifest_digest(manifest)
    for name, content in (("manifest.json", canonical(manifest)), ("linked.json", data)):
        os.chmod(folder / name, 0o644)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("entry", [
    {"file": FILES[1]}, {"file": "linked-00003.safetensors"}, {"file": "program.json"}, {"file": "../checkpoint/" + ONE},
    {"file": 1}, {"offset": -1}, {"offset": 1 << 62}, {"offset": 1.0}, {"offset": True}, {"bytes": 127}, {"bytes": 1 << 62},
    {"dtype": "F4"}, {"dtype": "float32"}, {"dtype": None}, {"shape": [8, 9]}, {"shape": [-8, -8]}, {"shape": 64},
    {"shape": [1] * 30 + [8, 8]}, {"shape": [8, 8.0]}, {"sha256": "0" * 64}, {"sha256": "0" * 63}, {"sha256": None},
    {"more": 1},
])
def test_a_forged_table_is_still_read_strictly(out, entry):
    forge(out, lambda _, table: table["weights"]["w.a"].update(entry))
    artifact = Artifact.open(out)
    for act in (artifact.verify, artifact.load_weights):
        with pytest.raises(DamagedArtifact) as caught:
            act()
        assert caught.value.field == "w.a"


@pytest.mark.parametrize("change", [
    lambda manifest, _: manifest["files"].pop("linked.json"),
    lambda manifest, _: manifest["files"][FILES[0]].update(sha256="0" * 64),
    lambda manifest, _: manifest["files"][FILES[0]].update(linked=1),
    lambda manifest, _: manifest["files"].update({FILES[0]: {"bytes": 1, "sha256": "0" * 64}}),
    lambda manifest, _: manifest["files"].update({"program.json": {"bytes": 1, "linked": True}}),
    lambda manifest, table: [table["weights"].pop(name) for name in ("w.c", "w.s")],
    lambda manifest, table: table.update(weights=[]),
    lambda manifest, table: table["weights"].update(own=table["weights"]["w.b"]),
])
def test_a_forged_artefact_is_damaged(out, change):
    forge(out, change)
    with pytest.raises((DamagedArtifact, IncompatibleArtifact)):
        Artifact.open(out).load_weights()


def test_a_reader_of_plain_artefacts_calls_it_another_format(out):
    forge(out, lambda manifest, _: manifest.update(format_version=1))
    with pytest.raises(IncompatibleArtifact, match="another format"):
        Artifact.open(out)


def test_a_linked_file_comes_from_a_checkpoint_only(tmp_path):
    with pytest.raises(InternalError), ArtifactWriter(tmp_path / "x.glmc") as writer:
        writer.add_bytes(FILES[0], b"")
