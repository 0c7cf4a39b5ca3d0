"""How published GLM code spells RoPE: four ways to rotate, each with its heads last, first, or with one head alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from glmc.passes.declare import Maths, Spelling


def spellings(reference: Callable, sizes: tuple) -> Iterator[Spelling]:
    """Every spelling, with the reference's own steps for it."""
    for rotate, read, write in ((_halves, -2, -2), (_halves_unbound, -2, -2), (_pairs, -1, -1), (_pairs_to_halves, -1, -2)):
        yield from _of(reference, sizes, rotate, read, write)


def _halves(x, cos, sin):
    """The angle's table twice side by side, the halves swapped and one negated."""
    x = x.to(cos.dtype)
    low, high = x.chunk(2, dim=-1)
    return x * torch.cat((cos, cos), -1) + torch.cat((-high, low), -1) * torch.cat((sin, sin), -1)


def _halves_unbound(x, cos, sin):
    """The same, the halves taken as two rows and widened after."""
    low, high = x.unflatten(-1, (2, x.shape[-1] // 2)).unbind(-2)
    swapped = torch.cat((-high, low), -1).to(cos.dtype)
    return x.to(cos.dtype) * torch.cat((cos, cos), -1) + swapped * torch.cat((sin, sin), -1)


def _pairs(x, cos, sin):
    """The angle's table with each entry twice, neighbours swapped and one negated."""
    x = x.to(cos.dtype)
    swapped = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    return x * cos.repeat_interleave(2, dim=-1) + swapped * sin.repeat_interleave(2, dim=-1)


def _pairs_to_halves(x, cos, sin):
    """Even and odd channels taken apart, turned, and left apart."""
    x = x.to(cos.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.cat([even * cos - odd * sin, odd * cos + even * sin], dim=-1)


def _turn(rotate, x, cos, sin):
    """`rotate` over the first 2n channels."""
    turn, keep = x[..., : 2 * cos.shape[-1]], x[..., 2 * cos.shape[-1]:]
    turned = rotate(turn, cos, sin).to(x.dtype)
    return torch.cat([turned, keep], dim=-1) if keep.shape[-1] else turned


def _of(reference: Callable, sizes: tuple, rotate: Callable, read: int, write: int) -> Iterator[Spelling]:
    """A rotation with heads last ([S, H, D], as seen), heads first ([H, S, D], transposed) and one head ([S, D])."""

    def seen(x: "... H D", cos: "wide ... n", sin: "wide ... n"):  # noqa: F722
        return _turn(rotate, x, cos.unsqueeze(-2), sin.unsqueeze(-2))

    def first(x: "B S H D", cos: "B S n", sin: "B S n"):  # noqa: F722
        return _turn(rotate, x.transpose(-3, -2), cos.unsqueeze(-3), sin.unsqueeze(-3))

    def single(x: "B S D", cos: "B S n", sin: "B S n"):  # noqa: F722
        return _turn(rotate, x.unsqueeze(-3), cos.unsqueeze(-3), sin.unsqueeze(-3))

    def ours(x, cos, sin):
        return reference(x, cos, sin, read=read, write=write)

    for heads, spelled in (("heads last", seen), ("heads first", first), ("one head", single)):
        spelled.__qualname__ = f"{rotate.__name__.strip('_')}, {heads}"
        spelled.__doc__ = rotate.__doc__
    rows = tuple({**s, "B": 2 + i % 2, "S": 7 + 4 * (i % 2)} for i, s in enumerate(sizes))
    yield Spelling(Maths(seen, sizes), ours)
    yield Spelling(Maths(first, rows), lambda x, cos, sin: ours(x, cos, sin).transpose(-3, -2))
    yield Spelling(Maths(single, rows), lambda x, cos, sin: ours(x.unsqueeze(-2), cos, sin).transpose(-3, -2))
