"""Recipes against the same steps in torch, and what they hold in memory."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from glmc.checkpoint.folder import Checkpoint
from glmc.checkpoint.recipe import Cast, Concatenate, Slice, Stack, Take, Transpose
from glmc.errors import WeightMismatch, WeightMissing

TENSORS = {"a": torch.arange(24.0).reshape(4, 6).bfloat16(), "b": torch.arange(24.0).reshape(4, 6).bfloat16() + 100,
           "f": torch.arange(24.0).reshape(4, 6) / 7, "v": torch.arange(6.0), "i": torch.arange(4)}
A, B, F = Take("a"), Take("b"), Take("f")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "config.json").write_text("{}")
    save_file(TENSORS, folder / "model.safetensors")
    return Checkpoint.open(folder)


CASES = {
    "take": (A, lambda a, b, f: a),
    "cast": (Cast(F, "BF16"), lambda a, b, f: f.bfloat16()),
    "cast twice": (Cast(Cast(F, "F16"), "F32"), lambda a, b, f: f.half().float()),
    "concatenate 0": (Concatenate((A, B)), lambda a, b, f: torch.cat([a, b])),
    "concatenate 1": (Concatenate([A, B, A], 1), lambda a, b, f: torch.cat([a, b, a], 1)),
    "stack": (Stack((A, B)), lambda a, b, f: torch.stack([a, b])),
    "stack of halves": (Stack((Concatenate((A, B)), Concatenate((B, A)))),
                        lambda a, b, f: torch.stack([torch.cat([a, b]), torch.cat([b, a])])),
    "slice 0": (Slice(A, 0, 1, 3), lambda a, b, f: a[1:3]),
    "slice 1": (Slice(A, 1, 2, 5), lambda a, b, f: a[:, 2:5]),
    "slice of slice": (Slice(Slice(A, 0, 1, 4), 0, 1, 2), lambda a, b, f: a[2:3]),
    "empty slice": (Slice(A, 0, 4, 4), lambda a, b, f: a[4:4]),
    "transpose": (Transpose(A, 0, 1), lambda a, b, f: a.T),
    "transpose of concatenation": (Transpose(Concatenate((A, B)), 0, 1), lambda a, b, f: torch.cat([a, b]).T),
    "cast of stack of mixed": (Stack((Cast(F, "BF16"), A)), lambda a, b, f: torch.stack([f.bfloat16(), a])),
    "cast slices": (Cast(Concatenate((Slice(A, 0, 0, 2), Slice(B, 0, 2, 4)), 1), "F32"),
                    lambda a, b, f: torch.cat([a[:2], b[2:]], 1).float()),
}


@pytest.mark.parametrize(("recipe", "reference"), CASES.values(), ids=CASES)
def test_as_in_torch(checkpoint, recipe, reference):
    expected = reference(TENSORS["a"], TENSORS["b"], TENSORS["f"])
    found = recipe.build(checkpoint)
    assert found.is_contiguous()
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
    assert recipe.shape(checkpoint.tensors) == tuple(expected.shape)
    assert set(recipe.names()) <= set(TENSORS)
    json.dumps(recipe.to_json(), allow_nan=False)
    other = torch.empty(expected.shape, dtype=torch.float64)
    recipe.fill(checkpoint, other)
    assert torch.equal(other, expected.double())


BAD = {
    "missing": (Stack((A, Take("none"))), WeightMissing),
    "stack shapes": (Stack((F, Take("v"))), WeightMismatch),
    "stack dtypes": (Stack((A, F)), WeightMismatch),
    "concatenate shapes": (Concatenate((A, Slice(B, 0, 0, 2)), 1), WeightMismatch),
    "concatenate ranks": (Concatenate((Take("v"), F)), WeightMismatch),
    "concatenate dim": (Concatenate((A, B), 2), WeightMismatch),
    "negative dim": (Concatenate((A, B), -1), WeightMismatch),
    "slice outside": (Slice(A, 0, 2, 5), WeightMismatch),
    "slice reversed": (Slice(A, 0, 3, 2), WeightMismatch),
    "transpose dim": (Transpose(Take("v"), 0, 1), WeightMismatch),
}


@pytest.mark.parametrize(("recipe", "error"), BAD.values(), ids=BAD)
def test_refused_from_headers_alone(checkpoint, recipe, error):
    with pytest.raises(error):
        recipe.build(checkpoint)


def test_refused_when_made():
    for make in (lambda: Stack(()), lambda: Concatenate(()), lambda: Cast(A, "bfloat16")):
        with pytest.raises(WeightMismatch):
            make()


def test_names_are_in_reading_order_and_once():
    assert Concatenate((B, Stack((A, B)), F)).names() == ["b", "a", "f"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_trees(checkpoint, data):
    recipe, expected = A, TENSORS["a"]
    for _ in range(data.draw(st.integers(0, 4))):
        step = data.draw(st.sampled_from(["cat", "stack", "slice", "transpose"]))
        dim = data.draw(st.integers(0, expected.dim() - 1))
        if step == "cat":
            recipe, expected = Concatenate((recipe, recipe), dim), torch.cat([expected, expected], dim)
        elif step == "stack" and expected.dim() < 4:
            recipe, expected = Stack((recipe, recipe)), torch.stack([expected, expected])
        elif step == "slice":
            stop = data.draw(st.integers(0, expected.shape[dim]))
            start = data.draw(st.integers(0, stop))
            recipe, expected = Slice(recipe, dim, start, stop), expected.narrow(dim, start, stop - start)
        else:
            recipe, expected = Transpose(recipe, 0, dim), expected.transpose(0, dim)
    assert torch.equal(recipe.build(checkpoint), expected)


def test_parts_are_read_into_their_place(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    save_file({f"e{i}": torch.full((64, 64), float(i)) for i in range(16)}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    made = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: made.append(empty(*args, **kwargs)) or made[-1])
    experts = [Take(f"e{i}") for i in range(16)]
    result = Stack([Concatenate((expert, expert)) for expert in experts]).build(checkpoint)
    assert len(made) == 1
    assert made[0] is result
    made.clear()
    Transpose(Stack(experts), 1, 2).build(checkpoint)
    assert max(t.numel() for t in made[1:]) == 64 * 64  # one part at a time beside the result
