"""Positions of prompts and of generated grids beside those that transformers' model makes."""

from __future__ import annotations

import drawing
import pytest
import torch

from glmc.errors import UsageError
from glmc.runtime.image.places import of_grids, of_prompt
from glmc.runtime.image.sizes import Grid

BEGIN, END, IMAGE = 30, 31, 120
DRAW = torch.Generator().manual_seed(11)


def some(low: int, high: int) -> int:
    return int(torch.randint(low, high, (), generator=DRAW))


def spoken(sources: list[Grid]) -> list[int]:
    """A prompt as the chat template makes it, with some text anywhere."""
    ids = [some(40, 100) for _ in range(some(0, 4))]
    for grid in sources:
        ids += [BEGIN, *[IMAGE] * grid.tokens, END, *(some(40, 100) for _ in range(some(0, 3)))]
    return [*ids, *(some(40, 100) for _ in range(some(1, 30))), BEGIN]


def theirs(ids: list[int], rows: list[Grid]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the prompt and of all that is decoded."""
    _, model, _, _ = drawing.published()
    grids = torch.tensor([[1, *grid] for grid in rows])
    positions, _ = model.model.get_rope_index(torch.tensor([ids]), grids, torch.tensor([len(rows)]),
                                              torch.ones(1, len(ids), dtype=torch.long))
    return positions[:, 0], model.model._cached_decode_position_ids[0]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_positions_are_transformers(count):
    for _ in range(100):
        sources = [Grid(some(1, 12), some(1, 12)) for _ in range(count)]
        large, preview, ids = Grid(some(1, 20), some(1, 20)), Grid(some(1, 9), some(1, 9)), spoken(sources)
        prompt, ahead = theirs(ids, [*sources, large] if sources else [large, preview])
        found, at = of_prompt(ids, BEGIN, END, sources)
        assert torch.equal(found, prompt)
        assert torch.equal(of_grids([large] if sources else [preview, large], at), ahead)


def test_the_preview_comes_first():
    found = of_grids([Grid(2, 3), Grid(5, 7)], 10)
    assert found[:, 0].tolist() == [10, 10, 10]
    assert found[:, 5].tolist() == [10, 11, 12]
    assert found[:, 6].tolist() == [13, 13, 13]
    assert found[:, -2].tolist() == [13, 17, 19]
    assert found[:, -1].tolist() == [20, 20, 20]


@pytest.mark.parametrize("ids", [
    [50, 51], [BEGIN, 50, BEGIN], [50, BEGIN, 51], [BEGIN, IMAGE, END, 50], [END, 50, BEGIN], [],
    [BEGIN, IMAGE, IMAGE, END, BEGIN], [BEGIN, END, IMAGE, END, BEGIN, BEGIN]])
def test_marks_that_do_not_fit_are_refused(ids):
    with pytest.raises(UsageError, match="marks of images"):
        of_prompt(ids, BEGIN, END, [Grid(1, 1)] if IMAGE in ids else [])
