"""A rank's share of a weight holds what the whole one holds there, to the bit, in every form."""

from __future__ import annotations

import pytest
import torch

from glmc.checkpoint.tensor_bytes import torch_dtype
from glmc.errors import InternalError
from glmc.native import panels
from glmc.native.keep import Keep
from glmc.native.share import fits, share
from glmc.placement import Cut

CUTS = {"rows in panels": ((128, 128), Cut(-2, (64, 64)), False),
        "rows between panels": ((60, 128), Cut(-2, (20, 20, 20)), False),
        "halves": ((128, 256), Cut(-2, (64, 64)), True), "halves between panels": ((40, 128), Cut(-2, (20, 20)), True),
        "columns": ((50, 256), Cut(-1, (256,)), False)}


def kept(form, sizes, halves=False, gpu=False, split=None):
    """A random weight: (how it is kept, what is stored)."""
    keep = Keep(form, sizes, "float32", halves, split, gpu)
    dtype, shape = keep.stored()
    out = torch.zeros(shape, dtype=torch_dtype(dtype))
    keep.pack(torch.randn(sizes, generator=torch.Generator().manual_seed(3)), out)
    return keep, out


@pytest.mark.parametrize("case", CUTS)
@pytest.mark.parametrize("form", panels.FORMS)
@pytest.mark.parametrize("experts", [(), (3,)], ids=["matrix", "experts"])
def test_a_share_of_panels(form, case, experts):
    sizes, cut, halves = CUTS[case]
    sizes = (*experts, *sizes)
    keep, whole = kept(form, sizes, halves)
    own = Keep(form, cut.of(sizes, 2), "float32", halves)
    for rank in range(2):
        found = share(whole, keep, own, cut, rank, 2)
        assert own.fits(found)
        assert torch.equal(own.held(found), cut.share(keep.held(whole), rank, 2))


@pytest.mark.parametrize("form", panels.CODED)
@pytest.mark.parametrize("case", ["rows between panels", "columns"])
def test_a_share_of_codes_for_gpus(form, case):
    sizes, cut, _ = CUTS[case]
    keep, whole = kept(form, sizes, gpu=True)
    own = Keep(form, cut.of(sizes, 2), "float32", gpu=True)
    for rank in range(2):
        assert torch.equal(own.held(share(whole, keep, own, cut, rank, 2)), cut.share(keep.held(whole), rank, 2))


def test_inputs_of_bfloat16_are_cut_between_pairs_too():
    keep, whole = kept("BF16", (40, 18))
    own = Keep("BF16", (40, 9), "float32")
    assert torch.equal(own.held(share(whole, keep, own, Cut(-1, (18,)), 1, 2)), keep.held(whole)[:, 9:])


def test_heads_of_a_latent():
    split = (4, 6, 10)
    keep, whole = kept("Q8", (64, 20), split=split)
    own = Keep("Q8", (32, 20), "float32", False, (2, 6, 10))
    assert torch.equal(own.held(share(whole, keep, own, Cut(-2, (64,)), 1, 2)), keep.held(whole)[32:])


@pytest.mark.parametrize(("form", "width", "able"), [("Q8", 128, (2, 4)), ("Q4", 96, (3,)), ("MX4", 128, (2,)), ("F8", 128, ()),
                                                     ("BF16", 128, (2, 4))])
def test_groups_that_share_a_scale_are_not_cut(form, width, able):
    keep = Keep(form, (64, width), "float32")
    assert tuple(n for n in (2, 3, 4) if width % n == 0 and fits(keep, Cut(-1, (width,)), n)) == able
    assert fits(keep, Cut(-2, (64,)), 4)


def test_a_share_that_is_kept_otherwise_is_an_error():
    keep, whole = kept("F32", (64, 8), halves=True)
    with pytest.raises(InternalError):
        share(whole, keep, Keep("F32", (32, 8), "float32"), Cut(-2, (32, 32)), 0, 2)
