"""Reading an artefact: any damage is caught before use, and damage is told apart from another format."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from itertools import combinations

import pytest
import torch
from safetensors.torch import load_file

from glmc.artifact import Artifact, acceptable_name, canonical, manifest_digest
from glmc.artifact_write import ArtifactWriter
from glmc.errors import ArtifactError, DamagedArtifact, IncompatibleArtifact, UsageError

WEIGHTS = {"a": torch.arange(64.0).reshape(8, 8).bfloat16(), "odd": torch.arange(5.0), "odd2": torch.arange(3),
           "b": torch.arange(32.0), "s": torch.tensor(3.0), "e": torch.empty(0, 4)}
FILES = ["ledger.json", "program.json", "regions/layer.py", "kernels/cpu.so", "tokenizer.json",
         "weights-00001.safetensors", "weights-00002.safetensors"]


def write(out, **fields):
    with ArtifactWriter(out) as writer:
        writer.add_json("program.json", {"steps": [1, 2]})
        writer.add_json("ledger.json", {"steps": [2, 1]})
        writer.add_bytes("regions/layer.py", b"x" * 20)
        writer.add_bytes("kernels/cpu.so", b"y" * 20)
        writer.add_bytes("tokenizer.json", b"")
        sink = writer.weights([("a", "BF16", (8, 8)), ("odd", "F32", (5,)), ("odd2", "I64", (3,)), ("b", "F32", (32,)),
                               ("s", "F32", ()), ("e", "F32", (0, 4))], shard_bytes=200)
        for name, tensor in WEIGHTS.items():
            sink.write(name, tensor)
        writer.seal({"glmc": "0.1.0", "family": "glm4_moe", **fields})
    return out


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    return write(tmp_path_factory.mktemp("artifact") / "x.glmc")


@pytest.fixture
def copy(intact, tmp_path):
    return shutil.copytree(intact, tmp_path / "x.glmc")


def use(folder):
    """Open and read everything, as a run does."""
    artifact = Artifact.open(folder)
    for name in artifact.files:
        artifact.read(name)
    return artifact.load_weights(1)


def test_the_valid_twin(intact):
    artifact = Artifact.open(intact)
    assert sorted(artifact.files) == sorted(FILES)
    assert artifact.manifest["family"] == "glm4_moe"
    assert artifact.json("program.json") == {"steps": [1, 2]}
    assert artifact.read("kernels/cpu.so") == b"y" * 20
    assert artifact.path("regions/layer.py").read_bytes() == b"x" * 20
    artifact.verify(2)
    for threads in (1, 2, None):
        found = artifact.load_weights(threads)
        assert set(found) == set(WEIGHTS)
        for name, value in WEIGHTS.items():
            assert found[name].dtype == value.dtype
            assert torch.equal(found[name], value)
            assert found[name].data_ptr() % 64 == 0
    library = {}
    for name in artifact.shards():
        library |= load_file(intact / name)
    assert all(torch.equal(library[name], value) for name, value in WEIGHTS.items())
    with pytest.raises(UsageError):
        artifact.read("../etc/passwd")


def test_opening_imports_no_torch(intact):
    code = ("import sys; from glmc.artifact import Artifact; a = Artifact.open(sys.argv[1]); a.verify(); "
            "a.json('program.json'); sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code, str(intact)], check=False).returncode == 0


def test_every_bit_flip_is_caught(copy):
    total, opened = 0, Artifact.open(copy)
    for name in ["manifest.json", *FILES]:
        path = copy / name
        os.chmod(path, 0o644)
        data = bytearray(path.read_bytes())
        total += len(data)
        with path.open("r+b", buffering=0) as file:
            for place in range(len(data)):
                for bit in range(8):
                    os.pwrite(file.fileno(), bytes([data[place] ^ (1 << bit)]), place)
                    with pytest.raises(DamagedArtifact):
                        Artifact.open(copy) if name == "manifest.json" else opened.read(name)
                os.pwrite(file.fileno(), data[place:place + 1], place)
    assert 1000 < total < 8192
    use(copy)


def test_every_truncation_is_caught(copy):
    for name in ["manifest.json", *FILES]:
        path = copy / name
        os.chmod(path, 0o644)
        data = path.read_bytes()
        for length in range(len(data)):
            path.write_bytes(data[:length])
            with pytest.raises(DamagedArtifact):
                Artifact.open(copy)
        path.write_bytes(data + b"\0")
        with pytest.raises(DamagedArtifact):
            Artifact.open(copy)
        path.write_bytes(data)
    use(copy)


@pytest.mark.parametrize("name", FILES[:3] + FILES[5:])
def test_weights_and_paths_notice_a_flip_too(copy, name):
    artifact = Artifact.open(copy)
    os.chmod(copy / name, 0o644)
    data = bytearray((copy / name).read_bytes())
    data[-1] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(DamagedArtifact, match=os.path.basename(name)):
        artifact.path(name)
    with pytest.raises(DamagedArtifact, match=os.path.basename(name)):
        artifact.verify()
    if name.startswith("weights-"):
        with pytest.raises(DamagedArtifact, match=name):
            artifact.load_weights()


@pytest.mark.parametrize("name", ["manifest.json", *FILES])
def test_a_missing_file(copy, name):
    (copy / name).unlink()
    with pytest.raises(DamagedArtifact):
        Artifact.open(copy)


def test_every_swap_of_two_files(copy):
    caught = 0
    for first, second in combinations(["manifest.json", *FILES], 2):
        spare = copy.parent / "spare"
        for source, target in ((copy / first, spare), (copy / second, copy / first), (spare, copy / second)):
            os.rename(source, target)
        with pytest.raises(DamagedArtifact):
            use(copy)
        caught += 1
        for source, target in ((copy / first, spare), (copy / second, copy / first), (spare, copy / second)):
            os.rename(source, target)
    assert caught == 28
    use(copy)


EXTRA = {
    "file": lambda folder: (folder / "more.json").write_text("{}"),
    "hidden file": lambda folder: (folder / ".more").write_text(""),
    "file in regions": lambda folder: (folder / "regions" / "more.py").write_text(""),
    "folder": lambda folder: (folder / "more").mkdir(),
    "folder in regions": lambda folder: (folder / "regions" / "more").mkdir(),
    "pipe": lambda folder: os.mkfifo(folder / "pipe"),
    "symlink": lambda folder: (folder / "link").symlink_to("program.json"),
    "dangling symlink": lambda folder: (folder / "link").symlink_to("nowhere"),
    "listed file is a symlink": lambda folder: (shutil.move(folder / "ledger.json", folder.parent / "l"),
                                                (folder / "ledger.json").symlink_to(folder.parent / "l")),
    "manifest is a symlink": lambda folder: (shutil.move(folder / "manifest.json", folder.parent / "m"),
                                             (folder / "manifest.json").symlink_to(folder.parent / "m")),
    "manifest is a pipe": lambda folder: ((folder / "manifest.json").unlink(), os.mkfifo(folder / "manifest.json")),
    "regions is a symlink": lambda folder: (shutil.move(folder / "regions", folder.parent / "r"),
                                            (folder / "regions").symlink_to(folder.parent / "r")),
    "regions is a file": lambda folder: (shutil.rmtree(folder / "regions"), (folder / "regions").write_text("")),
}


@pytest.mark.parametrize("change", EXTRA.values(), ids=EXTRA)
def test_anything_else_in_the_folder(copy, change):
    change(copy)
    with pytest.raises(DamagedArtifact):
        Artifact.open(copy)


def test_a_file_replaced_by_a_symlink_after_opening(copy):
    artifact = Artifact.open(copy)
    shutil.move(copy / "ledger.json", copy.parent / "l")
    (copy / "ledger.json").symlink_to(copy.parent / "l")
    with pytest.raises(DamagedArtifact):
        artifact.read("ledger.json")


def forge(folder, change):
    """Rewrite the manifest with `change` and its digest recomputed."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    manifest["digest"] = manifest_digest(manifest)
    os.chmod(path, 0o644)
    path.write_bytes(canonical(manifest))


@pytest.mark.parametrize("version", [0, 2, 99, -1])
def test_another_format_is_incompatible_and_not_damaged(copy, version):
    forge(copy, lambda manifest: manifest.update(format_version=version))
    with pytest.raises(IncompatibleArtifact) as caught:
        Artifact.open(copy)
    assert caught.value.found == version


@pytest.mark.parametrize("version", [None, "1", 1.0, True, [1]])
def test_a_format_version_that_is_no_integer_is_damage(copy, version):
    forge(copy, lambda manifest: manifest.update(format_version=version))
    with pytest.raises(DamagedArtifact):
        Artifact.open(copy)


def test_no_artefact_here(tmp_path):
    with pytest.raises(ArtifactError) as caught:
        Artifact.open(tmp_path / "none")
    assert type(caught.value) is ArtifactError
    with pytest.raises(DamagedArtifact):
        Artifact.open(tmp_path)


PATHS = [".", "..", "../x", "../../etc/passwd", "/etc/passwd", "//x", "./program.json", "regions/../x", "regions//x",
         "regions", "regions/", "kernels/..", "regions/a/b", "x/y", "a\\b", "..\\x", "a\0b", "a\nb", "\u202ex",
         "\u2024\u2024/x", "\uff0e\uff0e/x", "a b", "", " ", "-x", ".x", "~x", "~/x", "$HOME", "a:b", "C:\\x", "a..b",
         "x" * 200, "a%2fb", "é", "file:///etc/passwd", "a;b", "a|b", "a*", "regions/.x", "regions/-x", "regions/..",
         "Regions/x", "manifest.json"]


@pytest.mark.parametrize("name", PATHS)
def test_forged_names_are_refused_without_opening_them(copy, name, monkeypatch):
    entry = {"bytes": 1, "sha256": hashlib.sha256(b"").hexdigest()}
    forge(copy, lambda manifest: manifest["files"].update({name: entry}))
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest, **more: opened.append(str(path)) or real(path, *rest, **more))
    with pytest.raises(DamagedArtifact) as caught:
        Artifact.open(copy)
    assert opened == [str(copy / "manifest.json")]
    assert all(c.isprintable() or c == "\n" for c in str(caught.value))
    assert name == "manifest.json" or not acceptable_name(name)


@pytest.mark.parametrize("entry", [None, 1, {}, {"bytes": 1}, {"bytes": -1, "sha256": "0" * 64},
                         {"bytes": True, "sha256": "0" * 64}, {"bytes": 20, "sha256": "0" * 63},
                         {"bytes": 20, "sha256": "G" * 64}, {"bytes": 20.0, "sha256": "0" * 64},
                         {"bytes": 20, "sha256": "0" * 64, "more": 1},
                         {"bytes": 2**63, "sha256": "0" * 64}])
def test_forged_entries(copy, entry):
    forge(copy, lambda manifest: manifest["files"].update({"regions/layer.py": entry}))
    with pytest.raises(DamagedArtifact):
        Artifact.open(copy)


@pytest.mark.parametrize("change", [lambda text: text + b" ", lambda text: text.replace(b'"magic"', b'"magic" '),
                                    lambda text: text.replace(b"glm4_moe", b"glm4\\u005fmoe"),
                                    lambda text: text.replace(b"glmc-artifact", b"glmc-artefact"),
                                    lambda text: b'{"a": NaN}', lambda text: b"{}", lambda text: b"[]"])
def test_a_manifest_spelled_otherwise(copy, change):
    os.chmod(copy / "manifest.json", 0o644)
    (copy / "manifest.json").write_bytes(change((copy / "manifest.json").read_bytes()))
    with pytest.raises(DamagedArtifact):
        Artifact.open(copy)


def test_a_forged_shard_is_still_parsed_strictly(copy):
    name = "weights-00001.safetensors"
    other = (copy / "weights-00002.safetensors").read_bytes()
    for content in (other, b"", b"\0" * 7, (1 << 40).to_bytes(8, "little") + b"{}", other[:-1]):
        os.chmod(copy / name, 0o644)
        (copy / name).write_bytes(content)
        entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        forge(copy, lambda manifest, entry=entry: manifest["files"].update({name: entry}))
        artifact = Artifact.open(copy)
        with pytest.raises(DamagedArtifact):
            artifact.load_weights()
