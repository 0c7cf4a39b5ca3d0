"""Every parameter from the checkpoint and every tensor used, or the whole list of what disagrees."""

import pytest
import torch
from safetensors.torch import save_file

from glmc.artifact import Artifact
from glmc.artifact_write import ArtifactWriter
from glmc.checkpoint.folder import Checkpoint
from glmc.checkpoint.pack import Want, check, pack
from glmc.checkpoint.recipe import Cast, Concatenate, Take
from glmc.errors import CheckpointChanged, WeightMismatch, WeightMissing, WeightUnused

TENSORS = {"q": torch.randn(8, 6).bfloat16(), "k": torch.randn(4, 6).bfloat16(), "norm": torch.randn(6),
           "half": torch.randn(6).half(), "ids": torch.arange(5), "mtp.0.w": torch.randn(2), "mtp.1.w": torch.randn(2)}
WANTED = {"qk": Want(Concatenate((Take("q"), Take("k"))), (12, 6), "BF16"), "norm": Want(Take("norm"), (6,), "BF16"),
          "half": Want(Take("half"), (6,), "F32"), "ids": Want(Take("ids"), (5,), "I64")}
LEFT = (r"mtp\.\d+\..*",)


def make(folder, tensors=TENSORS):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    return Checkpoint.open(folder)


def test_the_valid_twin_and_its_leftovers(tmp_path):
    assert check(make(tmp_path), WANTED, LEFT) == ["mtp.0.w", "mtp.1.w"]


@pytest.mark.parametrize("name", ["q", "k", "norm", "half", "ids"])
def test_each_tensor_deleted_renamed_or_transposed(tmp_path, name):
    rest = {key: value for key, value in TENSORS.items() if key != name}
    with pytest.raises(WeightMissing) as caught:
        check(make(tmp_path / "deleted", rest), WANTED, LEFT)
    assert f"- {name}" in str(caught.value)
    with pytest.raises(WeightMissing) as caught:
        check(make(tmp_path / "renamed", {**rest, "other": TENSORS[name]}), WANTED, LEFT)
    assert f"- {name}" in str(caught.value)
    assert "- other" in str(caught.value)
    turned = TENSORS[name].T if TENSORS[name].dim() == 2 else TENSORS[name][:-1]
    with pytest.raises(WeightMismatch):
        check(make(tmp_path / "turned", {**rest, name: turned}), WANTED, LEFT)


@pytest.mark.parametrize(("name", "dtype"), [("norm", torch.float64), ("norm", torch.int64), ("q", torch.float8_e4m3fn),
                                             ("ids", torch.int32), ("k", torch.float16)])
def test_wrong_dtype(tmp_path, name, dtype):
    with pytest.raises(WeightMismatch) as caught:
        check(make(tmp_path, {**TENSORS, name: TENSORS[name].to(dtype)}), WANTED, LEFT)
    assert "dtype" in str(caught.value)


def test_a_cast_does_not_hide_an_integer(tmp_path):
    wanted = {**WANTED, "ids": Want(Cast(Take("ids"), "BF16"), (5,), "BF16")}
    with pytest.raises(WeightMismatch):
        check(make(tmp_path), wanted, LEFT)


def test_unused_and_everything_at_once(tmp_path):
    with pytest.raises(WeightUnused) as caught:
        check(make(tmp_path / "a"), WANTED)
    assert "mtp.0.w" in str(caught.value)
    assert "mtp.1.w" in str(caught.value)
    with pytest.raises(WeightUnused):  # a pattern matches the whole name
        check(make(tmp_path / "a"), WANTED, ("mtp",))
    wanted = {**WANTED, "x": Want(Take("x"), (1,), "F32"), "y": Want(Take("yy"), (1,), "F32"),
              "norm": Want(Take("norm"), (7,), "BF16")}
    with pytest.raises(WeightMissing) as caught:
        check(make(tmp_path / "a"), wanted)
    for text in ("- x", "yy (for y)", "expected shape [7], found [6]", "mtp.0.w"):
        assert text in str(caught.value)


def test_pack_streams_into_an_artefact_in_order(tmp_path):
    checkpoint = make(tmp_path / "checkpoint")
    seen = []
    with ArtifactWriter(tmp_path / "x.glmc") as writer:
        sink = writer.weights([(name, want.dtype, want.shape) for name, want in WANTED.items()])
        pack(checkpoint, WANTED, sink, lambda name, nbytes: seen.append((name, nbytes)))
        writer.seal({"glmc": "0"}, check=checkpoint.check_unchanged)
    assert seen == [("qk", 144), ("norm", 12), ("half", 24), ("ids", 40)]
    found = Artifact.open(tmp_path / "x.glmc").load_weights()
    assert torch.equal(found["qk"], torch.cat([TENSORS["q"], TENSORS["k"]]))
    assert torch.equal(found["norm"], TENSORS["norm"].bfloat16())
    assert torch.equal(found["half"], TENSORS["half"].float())
    assert torch.equal(found["ids"], TENSORS["ids"])


@pytest.mark.parametrize("at", range(5))
def test_an_edit_during_the_compile_publishes_nothing(tmp_path, at):
    checkpoint = make(tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / "model.safetensors"

    def edit(name, nbytes):
        edit.calls += 1
        if edit.calls == min(at + 1, 4):
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.unlink() if at == 4 else path.write_bytes(content)

    edit.calls = 0

    def compile_it():
        with ArtifactWriter(tmp_path / "x.glmc") as writer:
            sink = writer.weights([(name, want.dtype, want.shape) for name, want in WANTED.items()])
            pack(checkpoint, WANTED, sink, edit)
            writer.seal({}, check=checkpoint.check_unchanged)

    with pytest.raises(CheckpointChanged):
        compile_it()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".x.glmc.lock", "checkpoint"]
