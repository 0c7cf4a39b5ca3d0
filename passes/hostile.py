"""Inputs chosen to break a kernel: sizes for a site's symbols, and values by what each tensor stands for.

A tensor's part is read from its name in the reference: cos and sin are real tables (or free ones), positions rows of
positions, slots distinct cache slots, visible a mask that leaves each query something; norm weights lie around one and
biases around zero; everything else that is float carries the case's spread. Integers lie below the reference's bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from glmc.errors import InternalError, NumericError
from glmc.passes.declare import Maths

Shapes = dict[str, tuple[torch.dtype, tuple]]
"""Tensor -> (dtype, sizes: whole numbers or expressions of symbols)."""

_ODD = (3, 5, 7, 11, 13, 17, 19, 23)
_ROWS = 65_536
_ELEMENTS = 1 << 23
_FAR = 1_000_000
_BASE = 10_000.0
_HUGE, _LARGE = 2.0 ** 40, 2.0 ** 10


@dataclass(frozen=True)
class Case:
    """One set of inputs. sizes: "odd", "one row", "one token", "ones" or "many rows". farthest: the bound of positions.

    special: "zeros", "huge entry", "denormals", "free table" (cos and sin without any symmetry), "edge" or "".
    """

    sizes: str = "odd"
    spread: float = 1.0
    special: str = ""
    farthest: int = _FAR

    def __str__(self) -> str:
        return f"{self.special or f'spread {self.spread:g}'}, sizes {self.sizes}, positions to {self.farthest}"


CASES = (
    Case(), Case(spread=1e-3, farthest=7), Case(spread=30.0, farthest=4096), Case(special="zeros", farthest=0),
    Case(special="huge entry"), Case(special="denormals"), Case(special="free table"),
    Case(sizes="ones"), Case(sizes="one row"), Case(sizes="one token"), Case(sizes="many rows"),
)
EDGES = tuple(Case(spread=2.0 ** power, special="edge") for power in (120, 60, 45, 30, 15, 8))
"""Tried in this order until the replaced steps themselves hold."""


def symbols_of(shapes: Shapes) -> list[sympy.Symbol]:
    """The symbols of all sizes, in the order in which they appear."""
    seen: dict[sympy.Symbol, None] = {}
    for _, sizes in shapes.values():
        for size in sizes:
            if not isinstance(size, int):
                seen.update(dict.fromkeys(sorted(size.free_symbols, key=str)))
    return list(seen)


def concrete(sizes: tuple, values: dict[sympy.Symbol, int]) -> list[int]:
    """Sizes with every symbol given its value."""
    return [s if isinstance(s, int) else int(s.subs(values)) for s in sizes]


def assign(shapes: Shapes, outputs: list[tuple], sizes: str, top: int = 0) -> dict[sympy.Symbol, int] | None:
    """A value for each symbol; None where the site has no sizes of this kind. outputs: the sizes of the results.

    Symbols grow in the order of appearance, so that a cache has at least as many slots as there are tokens to write. top: the
    slots that an indexer chooses; there are more than twice as many, so that enough of them are visible.
    """
    symbols = symbols_of(shapes)
    if "index" in shapes:
        values = {"odd": dict(zip(symbols, _ODD, strict=False)), "one row": dict(zip(symbols, (1, 1), strict=False))}.get(sizes)
        return None if values is None else values | dict.fromkeys(symbols_of({"": shapes["index"]})[-1:], 3 * top + 5)
    if sizes == "one token":
        tokens = symbols_of({"": shapes["q_plain"]})[1:2] if "q_plain" in shapes else []
        return dict(zip(symbols, _ODD, strict=False)) | dict.fromkeys(tokens, 1) if tokens else None
    if sizes == "odd":
        return dict(zip(symbols, _ODD if len(symbols) > 1 else (11,), strict=False))
    if not symbols or (sizes == "one row" and len(symbols) < 2) or (sizes == "many rows" and "experts" in shapes):
        return None
    if sizes == "ones":
        return dict.fromkeys(symbols, 1)
    if sizes == "one row":
        return dict(zip(symbols, (1, *_ODD), strict=False))
    if sizes != "many rows":
        raise InternalError("no such kind of sizes", field=sizes)
    return _many(shapes, outputs, symbols)


def _many(shapes: Shapes, outputs: list[tuple], symbols: list[sympy.Symbol]) -> dict[sympy.Symbol, int] | None:
    """The last symbol of the first tensor raised until a result has 65,536 rows or a tensor 2^23 elements."""
    first = next(iter(shapes.values()))
    grows = symbols_of({"": first})[-1:]
    if not grows:
        return None

    def values(count: int) -> dict[sympy.Symbol, int]:
        known = dict(zip(symbols, (1, 2, 3, 5, 7), strict=False)) | {grows[0]: count}
        if "slots" in shapes:
            known |= dict.fromkeys(symbols_of({"": shapes["keys"]})[-1:], count + 1)
        return known

    def fits(count: int) -> bool:
        made = [concrete(s, values(count)) for _, s in shapes.values()]
        ends = [concrete(s, values(count)) for s in outputs]
        return max(map(math.prod, made + ends)) <= _ELEMENTS and max(math.prod(s[:-1]) for s in ends) <= _ROWS

    low, high = 1, _ROWS + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return values(low)


def ends(tensors: Iterable[torch.Tensor], shapes: Iterable[tuple], values: dict[sympy.Symbol, int], keep: int = 64,
         ) -> list[torch.Tensor]:
    """The first and last `keep` along each dim that the largest symbol sizes; the whole where there are no more."""
    symbol = max(values, key=values.__getitem__)
    count = values[symbol]
    if count <= 2 * keep:
        return list(tensors)
    rows = torch.cat([torch.arange(keep), torch.arange(count - keep, count)])
    out = []
    for tensor, sizes in zip(tensors, shapes, strict=True):
        for dim, size in enumerate(sizes):
            if not isinstance(size, int) and symbol in size.free_symbols:
                each = torch.arange(tensor.shape[dim] // count)
                tensor = tensor.index_select(dim, (rows.unsqueeze(1) * len(each) + each).flatten())
        out.append(tensor)
    return out


def inputs(maths: Maths, shapes: Shapes, values: dict[sympy.Symbol, int], case: Case, scalars: dict[str, Any],
           ) -> dict[str, torch.Tensor] | None:
    """The tensors of one case on the CPU, drawn anew from the case's own seed; None where no choice of slots is clear."""
    draw = torch.Generator().manual_seed(sum(map(ord, str(case))))
    sizes = {name: concrete(s, values) for name, (_, s) in shapes.items()}
    made: dict[str, torch.Tensor] = {}
    for name, (dtype, _) in shapes.items():
        if name in ("cos", "sin"):
            made[name] = _table(name, sizes[name], case, draw).to(dtype)
        elif name == "inv_freq":
            made[name] = _frequencies(sizes[name][0]).to(dtype)
        elif dtype is torch.bool:
            made[name] = _mask(sizes[name], draw)
        elif dtype.is_floating_point:
            made[name] = _floats(name, sizes[name], dtype, case, draw)
        elif name == "chosen":  # one of the visible slots is always among them
            drawn = torch.randint(0, made["visible"].shape[-1], sizes[name], generator=draw)
            drawn[..., 0] = made["visible"][:, 0].int().argmax(-1)
            made[name] = drawn.to(dtype)
        else:
            made[name] = _integers(name, maths, sizes, case, draw).to(dtype)
    if "logits" in made:
        _clear_ties(made["logits"], made["bias"], **{k: scalars[k] for k in ("groups", "kept", "top")})
    return made if "index" not in made or _clear_slots(**made, top=scalars["top"]) else None


def _frequencies(lanes: int) -> torch.Tensor:
    return _BASE ** (-torch.arange(lanes, dtype=torch.float64) / lanes)


def _table(name: str, sizes: list[int], case: Case, draw: torch.Generator) -> torch.Tensor:
    """cos and sin [..., n] of random positions, no two rows alike; the same positions for both. Or anything at all."""
    if case.special == "free table":
        return torch.randn(sizes, generator=draw, dtype=torch.float64)
    same = torch.Generator().manual_seed(case.farthest + 1)
    positions = torch.randint(0, case.farthest + 1, sizes[:-1], generator=same)
    angles = positions.unsqueeze(-1) * _frequencies(sizes[-1])
    return angles.cos() if name == "cos" else angles.sin()


def _mask(sizes: list[int], draw: torch.Generator) -> torch.Tensor:
    """Half of the slots, at least one for each query."""
    mask = torch.rand(sizes, generator=draw) < 0.5
    one = torch.randint(0, sizes[-1], (*sizes[:-1], 1), generator=draw)
    return mask.scatter(-1, one, torch.ones_like(one, dtype=torch.bool))


def _floats(name: str, sizes: list[int], dtype: torch.dtype, case: Case, draw: torch.Generator) -> torch.Tensor:
    drawn = torch.randn(sizes, generator=draw)
    if name == "weights":
        return drawn.abs().to(dtype)
    if name in ("gate_up", "down") or (name == "kv_b" and not case.special):
        return (drawn / math.sqrt(sizes[-1])).to(dtype)
    if name.endswith(("weight", "bias")):
        return (drawn * 0.3 + float(name.endswith("weight"))).to(dtype)
    spread = {"zeros": 0.0, "denormals": torch.finfo(dtype).smallest_normal / 4}.get(case.special, case.spread)
    drawn = (drawn.double() * spread).to(dtype) if spread != 1.0 else drawn.to(dtype)
    if case.special == "huge entry":
        # A softmax of values so large would hang on ties of the narrow keys, which float32 cannot break.
        drawn.view(-1)[int(torch.randint(0, drawn.numel(), (), generator=draw))] = \
            _LARGE if name in ("query", "key") else _HUGE
    return drawn


def _integers(name: str, maths: Maths, sizes: dict[str, list[int]], case: Case, draw: torch.Generator) -> torch.Tensor:
    shape = sizes[name]
    if name == "slots":
        return torch.rand((shape[0], sizes["keys"][1]), generator=draw).argsort(-1)[:, : shape[1]]
    below = maths.tensors[name].below
    if below is None:
        return torch.randint(0, case.farthest + 1, shape, generator=draw)
    dims = _dims(maths, {k: tuple(v) for k, v in sizes.items()})
    choice = torch.rand((*shape[:-1], dims[below]), generator=draw)
    if case.spread > 1:
        choice = choice[:1].expand_as(choice)  # every token chooses the same experts
    return choice.topk(shape[-1], dim=-1).indices


def _clear_ties(logits: torch.Tensor, bias: torch.Tensor, groups: int, kept: int, top: int) -> None:
    """Overwrite, in place, tokens whose choice a rounding step could turn with one whose choice it cannot."""
    clear = margin(logits, bias, groups, kept, top) > 1e-5
    if not bool(clear.any()):
        raise InternalError("no token of the drawn ones has a clear choice of experts", field="logits")
    logits[~clear] = logits[clear][0].clone()


def _clear_slots(query: torch.Tensor, index: torch.Tensor, shares: torch.Tensor, visible: torch.Tensor, top: int) -> bool:
    """Overwrite, in place, tokens whose choice of slots a rounding step could turn with one of their row whose choice it
    cannot; False where a row has none. Enough slots become visible to each token."""
    visible[..., -top:] = True
    scores = torch.relu(query.double() @ index.double().squeeze(2).transpose(1, 2).unsqueeze(1))
    total = (shares.double().unsqueeze(2) @ scores).squeeze(2).masked_fill(~visible[:, 0], -math.inf)
    best = total.topk(top + 1, dim=-1).values
    largest = best.nan_to_num(neginf=0.0).abs().amax(-1)
    single = torch.finfo(torch.float32)  # what it cannot hold is zero there or infinite, and a tie
    clear = (best[..., top - 1] - best[..., top] > 1e-4 * largest) & (largest > single.smallest_normal) & (largest < single.max)
    for row, good in enumerate(clear):
        if not bool(good.any()):
            return False
        first = int(good.int().argmax())
        for tensor in (query[row], shares[row], visible[row, 0]):
            tensor[~good] = tensor[first].clone()
    return True


def margin(logits: torch.Tensor, bias: torch.Tensor, groups: int, kept: int, top: int) -> torch.Tensor:
    """[T]: how far the last chosen and the first left out lie apart, groups and experts, in float64."""
    choice = logits.double().sigmoid() + bias.double()
    gap = torch.full((len(logits),), math.inf, dtype=torch.float64)
    grouped = choice.unflatten(-1, (groups, -1))
    if kept < groups:
        best = grouped.topk(2, dim=-1).values.sum(-1).sort(-1, descending=True)
        gap = best.values[:, kept - 1] - best.values[:, kept]
        out = torch.zeros_like(best.values).scatter(-1, best.indices[:, kept:], -math.inf)
        choice = (grouped + out.unsqueeze(-1)).flatten(-2)
    if top < choice.shape[-1]:
        ordered = choice.sort(-1, descending=True).values
        gap = torch.minimum(gap, ordered[:, top - 1] - ordered[:, top])
    return gap


def _dims(maths: Maths, sizes: dict[str, tuple]) -> dict[str, Any]:
    """Letter -> size. Raises InternalError where sizes do not fit the reference, which a proved site's do."""
    dims = maths.dims(sizes)
    if isinstance(dims, str):
        raise InternalError("the sizes do not fit the reference", found=dims)
    return dims


def least(sizes: tuple) -> int:
    """Elements where every symbol is one."""
    return math.prod(s for s in sizes if isinstance(s, int))


def smaller(maths: Maths, shapes: Shapes, most: int) -> tuple[Shapes, str] | None:
    """Shapes of the same structure with weights of at most `most` elements, and a sentence about it; None if none is so big.

    Integers' bounds come down to 16 (or twice what a row chooses), the other dims of the big weights by a common divisor.
    Raises NumericError where there is none.
    """
    big = [n for n, (_, sizes) in shapes.items() if least(sizes) > most]
    if not big:
        return None
    given = _dims(maths, {n: s for n, (_, s) in shapes.items()})
    bounds = {t.below: 2 * shapes[n][1][-1] for n, t in maths.tensors.items() if t.below and n in shapes}
    letters = {d for n in big for d in maths.tensors[n].dims if isinstance(given.get(d), int)} - set(bounds)
    new = {**given, **{d: min(given[d], max(16, enough)) for d, enough in bounds.items()}}
    common = math.gcd(*(given[d] for d in letters))
    for divisor in range(1, common + 1):
        if common % divisor == 0:
            new |= {d: given[d] // divisor for d in letters}
            made = {n: (dtype, tuple(new[d] for d in maths.tensors[n].dims)) for n, (dtype, _) in shapes.items()}
            if max(least(s) for _, s in made.values()) <= most:
                changed = ", ".join(f"{d} {given[d]} -> {new[d]}" for d in given if new[d] != given[d])
                return made, f"replayed by the reference's own steps at smaller sizes: {changed}"
    raise NumericError("the site is too large to replay and its sizes have no common divisor", field=", ".join(big))
