"""The weight files: misuse refused, and any layout written in any order comes back equal and aligned."""

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glmc.artifact import Artifact
from glmc.artifact_weights import plan_shards
from glmc.artifact_write import ArtifactWriter
from glmc.errors import DamagedArtifact, InternalError

LAYOUT = [("a", "BF16", (8, 8)), ("odd", "F32", (5,)), ("b", "F32", (32,))]

MISUSE = {
    "never sealed": lambda w: None,
    "name twice": lambda w: (w.add_bytes("a", b""), w.add_bytes("a", b"")),
    "hostile name": lambda w: w.add_bytes("../a", b""),
    "another folder": lambda w: w.add_bytes("other/a", b""),
    "a weight file": lambda w: w.add_bytes("weights-00001.safetensors", b""),
    "NaN": lambda w: w.add_json("a.json", {"a": float("nan")}),
    "no object": lambda w: w.add_json("a.json", [1]),
    "not JSON": lambda w: w.add_json("a.json", {"a": object()}),
    "own field": lambda w: w.seal({"files": {}}),
    "a weight missing": lambda w: (w.weights(LAYOUT), w.seal({})),
    "a weight unknown": lambda w: w.weights(LAYOUT).write("c", torch.ones(1)),
    "a weight's dtype": lambda w: w.weights(LAYOUT).write("b", torch.ones(32).half()),
    "a weight's shape": lambda w: w.weights(LAYOUT).write("b", torch.ones(4, 8)),
    "a weight twice": lambda w: [sink.write("b", torch.ones(32)) for sink in [w.weights(LAYOUT)] * 2],
    "two layouts": lambda w: (w.weights(LAYOUT), w.weights(LAYOUT)),
    "layout with a name twice": lambda w: w.weights(LAYOUT * 2),
    "layout with a dtype unknown": lambda w: w.weights([("a", "bfloat16", (1,))]),
}


@pytest.mark.parametrize("act", MISUSE.values(), ids=MISUSE)
def test_misuse_is_our_bug_and_leaves_nothing(tmp_path, act):
    with pytest.raises(InternalError), ArtifactWriter(tmp_path / "x.glmc") as writer:
        act(writer)
    assert [p.name for p in tmp_path.iterdir()] == [".x.glmc.lock"]


shapes = st.lists(st.tuples(st.sampled_from(["F32", "BF16", "U8"]), st.lists(st.integers(0, 40), max_size=2)),
                  max_size=8)


@settings(max_examples=60, deadline=None)
@given(shapes, st.integers(1, 3000), st.randoms(use_true_random=False))
def test_weights_in_any_order_come_back_aligned(tmp_path_factory, drawn, shard_bytes, random):
    out = tmp_path_factory.getbasetemp() / "any.glmc"
    shutil.rmtree(out, ignore_errors=True)
    kinds = {"F32": torch.float32, "BF16": torch.bfloat16, "U8": torch.uint8}
    layout = [(f"t{i}", dtype, tuple(shape)) for i, (dtype, shape) in enumerate(drawn)]
    made = {name: (torch.rand(shape) * 200).to(kinds[dtype]) for name, dtype, shape in layout}
    order = list(made)
    random.shuffle(order)
    with ArtifactWriter(out) as writer:
        sink = writer.weights(layout, shard_bytes)
        for name in order:
            sink.write(name, made[name])
        writer.seal({})
    for shard in plan_shards(layout, shard_bytes):
        held = sum(made[name].numel() * made[name].element_size() for name in shard.begins)
        assert held <= shard_bytes or sum(made[name].numel() > 0 for name in shard.begins) == 1
    found = Artifact.open(out).load_weights(2)
    assert set(found) == set(made)
    for name, value in made.items():
        assert torch.equal(found[name], value)
        assert found[name].dtype == value.dtype
        assert found[name].data_ptr() % 64 == 0 or not value.numel()


def test_an_empty_tensor_shares_its_place_with_one_that_waits(tmp_path):
    with ArtifactWriter(tmp_path / "x.glmc") as writer:
        sink = writer.weights([("a", "F32", (16,)), ("empty", "F32", (0,)), ("b", "F32", (16,))])
        for name, count in (("b", 16), ("empty", 0), ("a", 16)):
            sink.write(name, torch.full((count,), 3.0))
        writer.seal({})
    assert {name: len(value) for name, value in Artifact.open(tmp_path / "x.glmc").load_weights().items()} == {
        "a": 16, "empty": 0, "b": 16}


def test_shards_are_even_in_number_and_nearly_equal():
    shards = plan_shards([(f"layer{i}", "BF16", (2048, 1536)) for i in range(70)])
    assert len(shards) == 4
    assert max(s.total for s in shards) <= 128 << 20
    assert min(s.total for s in shards) > 0.8 * max(s.total for s in shards)
    small = plan_shards([(f"layer{i}", "BF16", (64, 64)) for i in range(70)])
    assert [s.file for s in small] == ["weights-00001.safetensors"]
    alone = plan_shards([("x", "F32", (4,)), ("big", "F32", (40 << 20,)), ("y", "F32", (4,))])
    assert [list(s.begins) for s in alone] == [["x"], ["big"], ["y"]]
    assert all(len(s.header) % 64 == 0 for s in (*shards, *small))


@pytest.fixture
def three(tmp_path):
    """An artefact of three weights, each alone in its shard."""
    with ArtifactWriter(tmp_path / "x.glmc") as writer:
        sink = writer.weights([(name, "F32", (16,)) for name in "abc"], 64)
        for number, name in enumerate("abc"):
            sink.write(name, torch.full((16,), float(number)))
        writer.seal({})
    return Artifact.open(tmp_path / "x.glmc")


def test_a_shard_without_a_wanted_weight_is_not_read(three):
    path = three.folder / three.shards()[2]
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    found = three.load_weights(2, wanted={"a", "b"})
    assert {name: float(value.mean()) for name, value in found.items()} == {"a": 0.0, "b": 1.0}
    with pytest.raises(DamagedArtifact):
        three.load_weights(2, wanted={"a", "c"})


def test_what_is_taken_of_a_weight_is_all_that_stays(three):
    found = three.load_weights(1, take=lambda name, weight: (weight + ord(name))[:2].clone())
    assert {name: value.tolist() for name, value in found.items()} == {"a": [97.0] * 2, "b": [99.0] * 2, "c": [101.0] * 2}
