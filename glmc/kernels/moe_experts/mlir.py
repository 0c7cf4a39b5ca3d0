"""Tokens through their chosen experts, every token by itself: the matrices of its experts are read where they lie.

Sizes that depend on what was chosen are none that a compiler ahead can have, so tokens are not sorted by expert. One token
reads what it must; many read an expert once for each token that chose it.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from glmc.kernels import opaque


def accepts(site) -> str | None:
    return None


@opaque("chosen_products", "(Tensor x, Tensor matrices, Tensor experts) -> Tensor")
def chosen_products(x: torch.Tensor, matrices: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    """x [T, K, I], matrices [E, O, I], experts int64 [T, K] below E -> [T, K, O], of each row with its expert's matrix."""
    return torch.stack([torch.stack([matrices[e] @ row for row, e in zip(rows, chosen, strict=True)])
                        for rows, chosen in zip(x, experts.tolist(), strict=True)])


@torch.library.register_fake("glmc::chosen_products")
def _(x: torch.Tensor, matrices: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    return x.new_empty((*experts.shape, matrices.shape[1]))


def plain(x: torch.Tensor, matrices: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    """`chosen_products` in steps that every importer takes."""
    return (matrices[experts] @ x.unsqueeze(-1)).squeeze(-1)


def run(x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor,
        ) -> torch.Tensor:
    """x [T, H], experts int64 [T, K] below E, weights float32 [T, K], gate_up [E, 2I, H], down [E, H, I] -> [T, H]."""
    each = x.unsqueeze(1).expand(-1, experts.shape[1], -1)
    gate, up = torch.ops.glmc.chosen_products(each, gate_up, experts).chunk(2, dim=-1)
    rows = torch.ops.glmc.chosen_products(functional.silu(gate) * up, down, experts).float()
    return (rows * weights.unsqueeze(-1)).sum(1).to(x.dtype)


def linalg(types: list[str], out: str) -> tuple[str, str]:
    """Name and text of the function in linalg that is `torch.ops.glmc.chosen_products` of these MLIR types."""
    x, matrices, experts = types
    _, top, width = x.removeprefix("tensor<").removesuffix("xf32>").split("x")
    rows = matrices.removeprefix("tensor<").split("x")[1]
    count = out.removeprefix("tensor<").split("x")[0]
    name = f"chosen_{rows}x{width}"
    return name, _CHOSEN.format(name=name, x=x, matrices=matrices, experts=experts, out=out, rows=rows, width=width, top=top,
                                given="%count" if count == "?" else "")


_CHOSEN = """func.func private @{name}(%x: {x}, %matrices: {matrices}, %experts: {experts}) -> {out} {{
  %first = arith.constant 0 : index
  %zero = arith.constant 0.0 : f32
  %count = tensor.dim %x, %first : {x}
  %empty = tensor.empty({given}) : {out}
  %none = linalg.fill ins(%zero : f32) outs(%empty : {out}) -> {out}
  %out = linalg.generic {{
    indexing_maps = [affine_map<(t, k, o, i) -> (t, k, i)>, affine_map<(t, k, o, i) -> (t, k)>,
                     affine_map<(t, k, o, i) -> (t, k, o)>],
    iterator_types = ["parallel", "parallel", "parallel", "reduction"]}}
    ins(%x, %experts : {x}, {experts}) outs(%none : {out}) {{
  ^bb0(%value: f32, %expert: i64, %sum: f32):
    %e = arith.index_cast %expert : i64 to index
    %o = linalg.index 2 : index
    %i = linalg.index 3 : index
    %weight = tensor.extract %matrices[%e, %o, %i] : {matrices}
    %product = arith.mulf %value, %weight : f32
    %next = arith.addf %sum, %product : f32
    linalg.yield %next : f32
  }} -> {out}
  return %out : {out}
}}"""
