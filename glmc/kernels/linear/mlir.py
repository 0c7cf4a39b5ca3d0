"""A matrix times rows of activations: torch's own product of a plain matrix, and of one in panels a hand-written linalg form.

Panels are those of the native library (`glmc.native.panels`, form F32): 32 outputs stand side by side, input by input, which
is what `linalg.mmt4d` multiplies by. One row reads each weight once, in order; many rows are packed by eight.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional

from glmc.kernels import opaque

PANEL = 32
"""Outputs of a panel. Of many rows 8 are multiplied at once: as many sums as half of 32 vector registers of 512 bits hold."""


class Panels(NamedTuple):
    """A matrix [rows, K] as panels [ceil(rows / 32), K, 32]."""

    panels: torch.Tensor
    rows: int


def accepts(site) -> str | None:
    return None


@opaque("linear_panels", "(Tensor x, Tensor weight, int rows) -> Tensor")
def _linear_panels(x: torch.Tensor, weight: torch.Tensor, rows: int) -> torch.Tensor:
    return plain(x, weight, rows)


@torch.library.register_fake("glmc::linear_panels")
def _(x: torch.Tensor, weight: torch.Tensor, rows: int) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], rows))


def plain(x: torch.Tensor, weight: torch.Tensor, rows: int) -> torch.Tensor:
    """`linear_panels` in steps that every importer takes."""
    return x @ weight.transpose(1, 2).flatten(0, 1)[:rows].T


def run(x: torch.Tensor, weight: torch.Tensor | Panels, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., I], weight [O, I], bias [O] or None -> [..., O] in x's dtype."""
    if not isinstance(weight, Panels):
        return functional.linear(x, weight, bias)
    flat = torch.ops.glmc.linear_panels(x.reshape(-1, x.shape[-1]), weight.panels, weight.rows)
    return (flat if bias is None else flat + bias).reshape(*x.shape[:-1], weight.rows)


def linalg(types: list[str], out: str, rows: int) -> tuple[str, str]:
    """Name and text of the function in linalg that is `torch.ops.glmc.linear_panels` of these MLIR types."""
    x, weight = types
    panels, width = map(int, weight.removeprefix("tensor<").split("x")[:2])
    name, text = f"linear_{rows}x{width}", _ONE if x.startswith("tensor<1x") else _MANY
    return name, text.format(name=name, x=x, weight=weight, out=out, panels=panels, width=width, rows=rows,
                             lanes=panels * PANEL, tiles=f"tensor<{panels}x{width}x{PANEL}x1xf32>")


_ONE = """func.func private @{name}(%x: {x}, %weight: {weight}) -> {out} {{
  %zero = arith.constant 0.0 : f32
  %tiles = tensor.expand_shape %weight [[0], [1], [2, 3]] output_shape [{panels}, {width}, 32, 1] : {weight} into {tiles}
  %row = tensor.expand_shape %x [[0], [1, 2, 3]] output_shape [1, {width}, 1, 1] : {x} into tensor<1x{width}x1x1xf32>
  %empty = tensor.empty() : tensor<1x{panels}x1x32xf32>
  %none = linalg.fill ins(%zero : f32) outs(%empty : tensor<1x{panels}x1x32xf32>) -> tensor<1x{panels}x1x32xf32>
  %sums = linalg.mmt4d ins(%row, %tiles : tensor<1x{width}x1x1xf32>, {tiles})
    outs(%none : tensor<1x{panels}x1x32xf32>) -> tensor<1x{panels}x1x32xf32>
  %flat = tensor.collapse_shape %sums [[0], [1, 2, 3]] : tensor<1x{panels}x1x32xf32> into tensor<1x{lanes}xf32>
  %out = tensor.extract_slice %flat[0, 0] [1, {rows}] [1, 1] : tensor<1x{lanes}xf32> to {out}
  return %out : {out}
}}"""
_MANY = """func.func private @{name}(%x: {x}, %weight: {weight}) -> {out} {{
  %first = arith.constant 0 : index
  %each = arith.constant 8 : index
  %zero = arith.constant 0.0 : f32
  %tiles = tensor.expand_shape %weight [[0], [1], [2, 3]] output_shape [{panels}, {width}, 32, 1] : {weight} into {tiles}
  %count = tensor.dim %x, %first : {x}
  %blocks = arith.ceildivui %count, %each : index
  %room = tensor.empty(%blocks) : tensor<?x{width}x8x1xf32>
  %rows = linalg.pack %x padding_value(%zero : f32) outer_dims_perm = [0, 1] inner_dims_pos = [0, 1] inner_tiles = [8, 1]
    into %room : {x} -> tensor<?x{width}x8x1xf32>
  %empty = tensor.empty(%blocks) : tensor<?x{panels}x8x32xf32>
  %none = linalg.fill ins(%zero : f32) outs(%empty : tensor<?x{panels}x8x32xf32>) -> tensor<?x{panels}x8x32xf32>
  %sums = linalg.mmt4d ins(%rows, %tiles : tensor<?x{width}x8x1xf32>, {tiles})
    outs(%none : tensor<?x{panels}x8x32xf32>) -> tensor<?x{panels}x8x32xf32>
  %flat = tensor.empty(%count) : {out}
  %out = linalg.unpack %sums outer_dims_perm = [0, 1] inner_dims_pos = [0, 1] inner_tiles = [8, 32]
    into %flat : tensor<?x{panels}x8x32xf32> -> {out}
  return %out : {out}
}}"""
