"""The rules of ops that only look at a value otherwise: a part keeps being a part, of another dim."""

from __future__ import annotations

import ast
import math
from typing import Any

from glmc.passes.place_rules import Shape, Site, Value, rule
from glmc.placement import Cut


def _moved(x: Value, dim: int | None, shape: Shape | None) -> Value:
    """`x` with its part along another dim."""
    return x.like(shape, Cut(dim, x.cut.parts) if x.cut and dim is not None else None)


@rule("operator.getitem")
def _getitem(site: Site, pair: Any, index: int) -> Any:
    return pair[index] if isinstance(pair, tuple) else pair.like()


@rule("aten.transpose.int")
def _transpose(site: Site, x: Value, first: int, second: int) -> Value:
    shape = None
    if x.shape:
        sizes = list(x.shape)
        sizes[first], sizes[second] = sizes[second], sizes[first]
        shape = tuple(sizes)
    dim = {first: second, second: first}.get(x.cut.dim, x.cut.dim) if x.cut else None
    return _moved(x, dim, shape)


@rule("aten.unsqueeze.default")
def _unsqueeze(site: Site, x: Value, dim: int) -> Value:
    at = len(x.shape) + 1 + dim if x.shape is not None else 0
    shape = (*x.shape[:at], 1, *x.shape[at:]) if x.shape is not None else None
    return _moved(x, x.cut.dim - (x.cut.dim <= dim) if x.cut else None, shape)


@rule("aten.squeeze.dim")
def _squeeze(site: Site, x: Value, dim: int) -> Value:
    if x.cut and x.cut.dim == dim:
        raise site.refuse("the only one of a dim has no parts", x)
    shape = tuple(n for i, n in enumerate(x.shape) if i != len(x.shape) + dim) if x.shape else None
    return _moved(x, x.cut.dim + (x.cut.dim < dim) if x.cut else None, shape)


@rule("aten.flatten.using_ints")
def _flatten(site: Site, x: Value, first: int, last: int) -> Value:
    if x.shape is None or (first, last) != (-2, -1):
        if x.cut:
            raise site.refuse("a flattening of other dims than heads and channels", x)
        return x.like()
    joined = math.prod(map(int, x.shape[-2:])) if all(isinstance(n, int) for n in x.shape[-2:]) else None
    shape = (*x.shape[:-2], joined) if joined is not None else None
    if x.cut is None:
        return x.like(shape)
    if x.cut.dim != -2 or len(x.cut.parts) != 1 or joined is None:
        raise site.refuse("a flattening of parts that do not follow one another", x)
    return x.like(shape, Cut(-1, (joined,)))


@rule("aten.unflatten.int")
def _unflatten(site: Site, x: Value, dim: int, sizes: list[int]) -> Value:
    shape = (*x.shape[:-1], *sizes) if x.shape and dim == -1 else None
    if x.cut is None:
        return x.like(shape)
    if dim != -1 or x.cut.dim != -1 or len(x.cut.parts) != 1 or len(sizes) != 2 or not isinstance(site.call.args[2], ast.List):
        raise site.refuse("an unflattening of other parts than heads one after another", x)
    site.call.args[2].elts[0] = site.divide(site.call.args[2].elts[0])
    return x.like(shape, Cut(-2, (sizes[0],)))


@rule("aten.slice.Tensor")
def _slice(site: Site, x: Value, dim: int, start: int, stop: int, step: int) -> Value:
    whole = x.shape[dim] if x.shape else None
    shape = None
    if x.shape and isinstance(whole, int):
        sizes = list(x.shape)
        sizes[dim] = -(-(min(stop, whole) - start) // step)
        shape = tuple(sizes)
    if x.cut is None or x.cut.dim != dim:
        return x.like(shape, x.cut)
    bounds = [sum(x.cut.parts[:i]) for i in range(len(x.cut.parts) + 1)]
    end = min(stop, x.cut.size)
    if start not in bounds or end not in bounds or step != 1:
        raise site.refuse("a slice that does not end where a part ends", x)
    site.call.args[2] = site.divide(site.call.args[2]) if start else site.call.args[2]
    site.call.args[3] = site.divide(site.call.args[3]) if stop <= x.cut.size else site.call.args[3]
    return x.like(shape, Cut(dim, x.cut.parts[bounds.index(start):bounds.index(end)]))


@rule("aten.view.default", "aten.reshape.default")
def _view(site: Site, x: Value, sizes: list[Any]) -> Value:
    if x.cut:
        raise site.refuse("a view of a part", x)
    letters = tuple(s for s in sizes if isinstance(s, int | str))
    return x.like(None if len(letters) < len(sizes) or -1 in letters else letters)


@rule("aten.sym_size.int")
def _size(site: Site, x: Value, dim: int) -> Any:
    if x.cut and x.shape and dim in (x.cut.dim, len(x.shape) + x.cut.dim):
        raise site.refuse("a size that is cut", x)
    return x.shape[dim] if x.shape else None
