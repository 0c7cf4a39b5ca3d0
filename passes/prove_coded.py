"""Numeric proof of products with coded matrices: Triton's kernels in its interpreter, beside the same with decoded matrices.

Each distinct form and size is drawn, quantised and multiplied as one row, a few and many, experts in either of their two
places. Exact is the product in float64 with what the codes stand for. In float32 the worst error may be 1e-4 of the largest
value; in bfloat16 twice that of the plain product with the matrix rounded to bfloat16, plus one rounding step. Large matrices
are proved with fewer outputs and inputs, the last group as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from glmc import kernels
from glmc.errors import NumericError
from glmc.native.keep import Keep
from glmc.passes.declare import load

FLOAT32 = 1e-4
_MOST = {2: (40, 1024), 3: (4, 16, 256)}
"""Outputs and inputs, and experts before them, that are proved at most; of inputs what is over a group is added."""


@dataclass(frozen=True)
class CodedProof:
    """Worst errors over all counts of rows, relative to the largest exact value, and what they may be. sizes: of the matrix
    as it was proved; places: how many weights are like it."""

    kernel: str
    form: str
    dtype: str
    sizes: tuple[int, ...]
    coded_error: float
    plain_error: float
    limit: float
    places: int

    def to_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


@torch.no_grad()
def prove_coded(keeps: Mapping[str, Keep]) -> list[CodedProof]:
    """Prove each distinct matrix of a program for GPUs. Raises NumericError."""
    places: dict[Keep, int] = {}
    for keep in keeps.values():
        smaller = dataclasses.replace(keep, sizes=_smaller(keep.sizes))
        places[smaller] = places.get(smaller, 0) + 1
    return [_prove(keep, count) for keep, count in places.items()]


def _smaller(sizes: tuple[int, ...]) -> tuple[int, ...]:
    *few, inputs = (min(size, most) for size, most in zip(sizes, _MOST[len(sizes)], strict=True))
    return *few, min(sizes[-1], inputs + sizes[-1] % 128)


def _prove(keep: Keep, places: int) -> CodedProof:
    from glmc.checkpoint.tensor_bytes import torch_dtype

    draw = torch.Generator().manual_seed(17)
    kind, shape = keep.stored()
    packed = torch.empty(shape, dtype=torch_dtype(kind))
    keep.pack(torch.randn(keep.sizes, generator=draw) * keep.sizes[-1] ** -0.5, packed)
    dtype, held = getattr(torch, keep.dtype), keep.held(packed)
    made = CodedProof("moe_experts" if len(keep.sizes) == 3 else "linear", keep.form, keep.dtype, keep.sizes, 0.0, 0.0, FLOAT32,
                      places)
    for plain, ours, exactly in (_experts if len(keep.sizes) == 3 else _rows)(keep, held, draw, dtype):
        exact = exactly(held.double())
        with kernels.checking("triton"):
            found = ours(keep.bound(packed))
        errors = [float((one.double() - exact).abs().max() / exact.abs().max()) for one in (found, plain(held.to(dtype)))]
        limit = FLOAT32 if dtype == torch.float32 else 2 * errors[1] + torch.finfo(dtype).eps
        if not errors[0] <= limit:
            raise NumericError("a product with a coded matrix is not that with the decoded one", field=made.kernel,
                               expected=f"at most {limit:.3g} in {keep.form} {list(keep.sizes)}", found=f"{errors[0]:.3g}")
        if errors[0] >= made.coded_error:
            made = dataclasses.replace(made, coded_error=errors[0], plain_error=errors[1], limit=limit)
    return made


Product = Callable[[Any], torch.Tensor]
"""Of a matrix, coded or not."""


def _rows(keep: Keep, held: torch.Tensor, draw: torch.Generator, dtype: torch.dtype,
          ) -> Iterable[tuple[Product, Product, Product]]:
    """(plain product, kernel, exact product) for one row, a few and many."""
    kernel = kernels.load("linear", "triton")
    for count in (1, 3, kernel.FEW + 1):
        x = torch.randn(count, keep.sizes[1], generator=draw).to(dtype)
        yield partial(functional.linear, x), partial(kernel.run, x), partial(functional.linear, x.double())


def _experts(keep: Keep, held: torch.Tensor, draw: torch.Generator, dtype: torch.dtype,
             ) -> Iterable[tuple[Product, Product, Product]]:
    """The same for few tokens and for many, with the matrices as `down` and, where they have two halves, as `gate_up`."""
    kernel, reference = kernels.load("moe_experts", "triton"), load("moe_experts").reference
    count, outputs, inputs = keep.sizes
    for tokens in (1, kernel.FEW + 1):
        chosen = torch.stack([torch.randperm(count, generator=draw)[:min(2, count)] for _ in range(tokens)])
        shares = torch.rand(chosen.shape, generator=draw)
        for down in (True, False)[:1 + (outputs % 2 == 0)]:
            width, inner = (outputs, inputs) if down else (inputs, outputs // 2)
            x = torch.randn(tokens, width, generator=draw).to(dtype)
            sizes = (count, 2 * inner, width) if down else (count, width, inner)
            other = (torch.randn(sizes, generator=draw) * sizes[-1] ** -0.5).to(dtype)

            def with_matrices(run: Any, wide: bool = False, x: Any = x, chosen: Any = chosen, shares: Any = shares,
                              other: Any = other, down: bool = down) -> Product:
                given, beside = (x.double(), other.double()) if wide else (x, other)
                return lambda w: run(given, chosen, shares.double() if wide else shares,
                                     *((beside, w) if down else (w, beside)))

            yield with_matrices(reference), with_matrices(kernel.run), with_matrices(reference, wide=True)
