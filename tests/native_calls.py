"""One call of the native library by itself, on tensors, for tests of its kernels."""

from __future__ import annotations

import torch

from glmc import native
from glmc.machine import cpu_flags
from glmc.native import panels
from glmc.native.cache import Cache
from glmc.native.calls import Call, Form, Rows, Stride, Weight
from glmc.native.executor import Executor, Item
from glmc.native.keep import Keep

VARIANTS = [name for name, needs in native.VARIANTS.items() if name in native.built() and set(needs) <= set(cpu_flags())]
"""The builds of the library that this CPU can run."""
WAYS = (*panels.FORMS, *(f"{form}-exact" for form in panels.CODED))
"""Every way to multiply: a form, or with `-exact` a form's float32 with activations as they are."""
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "U8": torch.uint8}


def keep_of(way: str, sizes: tuple[int, ...], halves: bool = False) -> Keep:
    """The note of a matrix that is multiplied in one of WAYS."""
    form, _, exact = way.partition("-")
    return Keep(form, sizes, "float32" if exact or form not in panels.CODED else "bfloat16", halves)


def room(keep: Keep) -> torch.Tensor:
    """Memory for what `keep` notes, with something else in it."""
    dtype, shape = keep.stored()
    return torch.full(shape, 77, dtype=DTYPES[dtype])


def packed(matrix: torch.Tensor, way: str, halves: bool = False) -> tuple[torch.Tensor, Keep]:
    """A matrix to be multiplied in one of WAYS, and the note of it."""
    keep = keep_of(way, tuple(matrix.shape), halves)
    out = room(keep)
    panels.pack(matrix, keep.form, out, halves)
    return out, keep


class One:
    """Registers numbered as they are made, filled from tensors [T, width], and one call on them."""

    def __init__(self) -> None:
        self.widths: dict[int, int] = {}
        self.given: dict[int, torch.Tensor] = {}
        self.weights: dict[str, torch.Tensor] = {}
        self.kept: dict[str, Keep] = {}

    def rows(self, tensor: torch.Tensor) -> Rows:
        reg = self.room(tensor.shape[1])
        self.given[reg.reg] = tensor
        return reg

    def room(self, width: int) -> Rows:
        self.widths[len(self.widths)] = width
        return Rows(len(self.widths) - 1, 0, width)

    def weight(self, tensor: torch.Tensor, keep: Keep | None = None) -> Weight:
        name = f"w{len(self.weights)}"
        self.weights[name] = tensor
        self.kept[name] = keep or Keep("vector", tuple(tensor.shape), "float32")
        return Weight(name, None)

    def run(self, kernel: str, n: list, p: list, f: tuple[float, ...] = (), threads: int = 2, tokens: int | None = None,
            positions: torch.Tensor | None = None, ids: torch.Tensor | None = None, cache: Cache | None = None,
            sequences: torch.Tensor | None = None, per: int = 1, **told: torch.Tensor) -> list[torch.Tensor]:
        """Run it; every register afterwards, [T, width]. Rooms hold NaN before. cache: of one layer. per: tokens a row.
        told: what else a step is told."""
        count = tokens or len(next(iter(self.given.values())))
        call = Call(kernel, n, p, list(f), tuple(r for r in self.widths if r not in self.given), per)
        item = Item(call, {r: r for r in self.widths}, {name: name for name in self.weights})
        executor = Executor([item], self.widths, self.weights, self.kept, cache, count, threads, list(self.widths))
        rows = {reg: count if reg in self.given else count // per for reg in self.widths}
        for reg, many in rows.items():
            executor.rows(reg, many).copy_(self.given.get(reg, torch.full((many, self.widths[reg]), torch.nan)))
        where = torch.zeros(count, dtype=torch.int64) if positions is None else positions
        zeros = torch.zeros_like(where)
        executor.run(zeros if ids is None else ids, where, zeros if sequences is None else sequences, where[:0], None, **told)
        return [executor.rows(reg, many).clone() for reg, many in rows.items()]


def product(x: torch.Tensor, matrix: torch.Tensor | tuple[torch.Tensor, Keep], way: str = "", bias: torch.Tensor | None = None,
            residual: torch.Tensor | None = None, threads: int = 2) -> torch.Tensor:
    """x [T, K] times a matrix [N, K], packed already or to be."""
    one = One()
    rows = one.rows(x)
    held, keep = packed(matrix, way) if isinstance(matrix, torch.Tensor) else matrix
    weight = one.weight(held, keep)
    more = None if residual is None else one.rows(residual)
    out = one.room(keep.sizes[0])
    n = [x.shape[1], keep.sizes[0], Stride(rows.reg), Stride(out.reg), Form(weight.name), Stride(more.reg) if more else 0]
    return one.run("linear", n, [rows, weight, None if bias is None else one.weight(bias), out, more], threads=threads)[out.reg]
