"""Rows of patches among ranks: cut and joined alike, refused where they do not divide."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from glmc.dit_part import ExplicitDenoiser
from glmc.errors import RequestOutOfBounds
from glmc.runtime.image.plan import Rows

RECORDED = load_file(Path(__file__).parents[2] / "data" / "sglang" / "glm_image.safetensors")
SHARDS = [(name, *map(int, found.groups())) for name in RECORDED
          if (found := re.fullmatch(r"shard_(?:latents|rotary\.S\d+_D\d+)\.sp(\d+)\.rank(\d+)", name))]

TABLES = [(name, *map(int, found.groups("0"))) for name in RECORDED
          if (found := re.fullmatch(r"dit_rotary\.H(\d+)_W(\d+)_dim(\d+)_p(\d+)(?:\.sp(\d+)\.rank(\d+))?\.(?:cos|sin)", name))]


@pytest.mark.parametrize(("total", "ranks"), [(4, 1), (4, 2), (8, 4), (6, 3)])
def test_shares_are_the_whole_again(total, ranks):
    rows = Rows(total, ranks)
    latents = torch.randn(1, 3, 2 * total, 5)
    assert torch.equal(torch.cat([rows.cut(latents, 2, rank) for rank in range(ranks)], 2), latents)
    assert torch.equal(torch.cat([rows.numbers(rank) for rank in range(ranks)]), torch.arange(total))
    assert all(rows.cut(latents, 2, rank).is_contiguous() for rank in range(ranks))


@pytest.mark.parametrize(("total", "ranks", "near"), [
    (2, 4, "64 for 4"), (6, 4, "64 or 128 for 4"), (4, 3, "96 for 3"), (10, 8, "128 or 256 for 8")])
def test_rows_that_do_not_divide_are_refused_with_heights_that_do(total, ranks, near):
    with pytest.raises(RequestOutOfBounds) as fault:
        Rows(total, ranks)
    assert fault.value.field == "height"
    assert near in str(fault.value.expected)


@pytest.mark.parametrize(("name", "ranks", "rank"), SHARDS)
def test_shares_are_sglangs_where_rows_divide(name, ranks, rank):
    """It pads tables with their last row and latents with zeros where they do not; those are refused here."""
    whole = RECORDED[re.sub(r"sp\d+\.rank\d+", "in", name)]
    dim, patch = (2, 2) if "latents" in name else (0, 1)
    total = whole.shape[dim] // patch
    if total % ranks:
        with pytest.raises(RequestOutOfBounds):
            Rows(total, ranks)
    else:
        assert torch.equal(Rows(total, ranks).cut(whole, dim, rank), RECORDED[name])


@pytest.mark.parametrize(("name", "height", "width", "dim", "patch", "ranks", "rank"), TABLES)
def test_rotary_rows_of_a_share_are_sglangs(name, height, width, dim, patch, ranks, rank):
    total, ranks = height // patch, ranks or 1
    if total % ranks:
        with pytest.raises(RequestOutOfBounds):
            Rows(total, ranks)
        return
    published = SimpleNamespace(rope=SimpleNamespace(dim=dim, theta=10000.0))
    made = ExplicitDenoiser(published).angles(Rows(total, ranks).numbers(rank), torch.arange(width // patch))
    found = made[name.endswith("sin")]
    assert torch.equal(found[:, :dim // 2], RECORDED[name])
    assert torch.equal(found[:, dim // 2:], RECORDED[name])
