"""Attention over the cache: products and a softmax whose sum divides last. No key or value is repeated: a group of query heads
takes the place of rows.

One new token: multiply and sum, which a compiler makes one loop over the slots. Many: both products are a hand-written linalg
form, which packs its operands as a matrix unit or vector registers take them; a product of sizes that are known only when it
runs is otherwise several times slower. What is hidden is added as -inf, since masks of bits are read one by one.
"""

from __future__ import annotations

import torch

from glmc.kernels import opaque


def accepts(site) -> str | None:
    return None


@opaque("products", "(Tensor a, Tensor b) -> Tensor")
def products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a [N, M, K], b [N, L, K] of float32 -> [N, M, L], for each N all products of rows.

    Summed here in float64: in which order a compiler adds is its own, and what it made is proved by itself.
    """
    return (a.double() @ b.double().transpose(1, 2)).to(a.dtype)


@torch.library.register_fake("glmc::products")
def _(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a.new_empty((*a.shape[:2], b.shape[1]))


def plain(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`products` in steps that every importer takes."""
    return a @ b.transpose(1, 2)


def run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor | None = None, *, scale: float,
        ) -> torch.Tensor:
    """query [B, H, S, D], key [B, Hkv, L, D], value [B, Hkv, L, V], visible bool [B, 1, S, L] or all -> [B, H, S, V]."""
    (rows, heads, tokens, width), (kv, slots) = query.shape, value.shape[1:3]
    groups = heads // kv
    hidden = None if visible is None else torch.where(visible, 0.0, float("-inf"))
    if isinstance(tokens, int) and tokens == 1:
        asked = query.reshape(rows, kv, groups, width).float()
        scores = (asked.unsqueeze(3) * key.float().unsqueeze(2)).sum(-1) * scale
        weights, total = shares(scores if hidden is None else scores + hidden)
        found = (weights.unsqueeze(-1) * value.float().unsqueeze(2)).sum(3) / total
        return found.to(query.dtype).reshape(rows, heads, 1, value.shape[-1])
    asked = query.contiguous().float().view(rows * kv, groups * tokens, width)
    keys = key.contiguous().float().view(rows * kv, slots, width)
    values = value.transpose(2, 3).contiguous().float().view(rows * kv, value.shape[-1], slots)
    scores = torch.ops.glmc.products(asked, keys) * scale
    if hidden is not None:
        split = scores.unflatten(1, (groups, tokens)).unflatten(0, (rows, kv))
        scores = (split + hidden.unsqueeze(1)).flatten(0, 1).flatten(1, 2)
    weights, total = shares(scores)
    found = (torch.ops.glmc.products(weights, values) / total).to(query.dtype)
    return found.unflatten(1, (groups, tokens)).unflatten(0, (rows, kv)).flatten(1, 2)


def shares(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """scores [..., L] -> their exponentials relative to the largest, and the sums [..., 1] of these.

    The maximum is taken by itself, since importers make torch's softmax search for its place too.
    """
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    return weights, weights.sum(-1, keepdim=True)


def linalg(types: list[str], out: str) -> tuple[str, str]:
    """Name and text of the function in linalg that is `torch.ops.glmc.products` of these MLIR types."""
    (n, m, k), (_, cols, _) = (kind.removeprefix("tensor<").removesuffix("xf32>").split("x") for kind in types)
    blocks = "?" if m == "?" else str(-(-int(m) // 8))
    lanes = "?" if cols == "?" else str(-(-int(cols) // 32))

    def sizes(**given: str) -> str:
        return ", ".join(f"%{name}" for name, size in given.items() if size == "?")

    rows, columns, tiles = f"tensor<{n}x{blocks}x{k}x8x1xf32>", f"tensor<{n}x{lanes}x{k}x32x1xf32>", (
        f"tensor<{n}x{blocks}x{lanes}x8x32xf32>")
    sides = "_".join("x".join(size) for size in ((n, m, k), (n, cols, k))).replace("?", "n")
    name = f"products_{sides}"
    return name, _PRODUCTS.format(
        name=name, a=types[0], b=types[1], out=out, rows=rows, columns=columns, tiles=tiles,
        of_rows=sizes(n=n, blocks=blocks, k=k), of_columns=sizes(n=n, lanes=lanes, k=k),
        of_tiles=sizes(n=n, blocks=blocks, lanes=lanes), of_out=sizes(n=n, m=m, l=cols))


_PRODUCTS = """func.func private @{name}(%a: {a}, %b: {b}) -> {out} {{
  %0 = arith.constant 0 : index
  %1 = arith.constant 1 : index
  %2 = arith.constant 2 : index
  %8 = arith.constant 8 : index
  %32 = arith.constant 32 : index
  %zero = arith.constant 0.0 : f32
  %n = tensor.dim %a, %0 : {a}
  %m = tensor.dim %a, %1 : {a}
  %k = tensor.dim %a, %2 : {a}
  %l = tensor.dim %b, %1 : {b}
  %blocks = arith.ceildivui %m, %8 : index
  %lanes = arith.ceildivui %l, %32 : index
  %room = tensor.empty({of_rows}) : {rows}
  %rows = linalg.pack %a padding_value(%zero : f32) outer_dims_perm = [0, 1, 2] inner_dims_pos = [1, 2] inner_tiles = [8, 1]
    into %room : {a} -> {rows}
  %space = tensor.empty({of_columns}) : {columns}
  %columns = linalg.pack %b padding_value(%zero : f32) outer_dims_perm = [0, 1, 2] inner_dims_pos = [1, 2] inner_tiles = [32, 1]
    into %space : {b} -> {columns}
  %empty = tensor.empty({of_tiles}) : {tiles}
  %none = linalg.fill ins(%zero : f32) outs(%empty : {tiles}) -> {tiles}
  %sums = linalg.batch_mmt4d ins(%rows, %columns : {rows}, {columns}) outs(%none : {tiles}) -> {tiles}
  %flat = tensor.empty({of_out}) : {out}
  %out = linalg.unpack %sums outer_dims_perm = [0, 1, 2] inner_dims_pos = [1, 2] inner_tiles = [8, 32]
    into %flat : {tiles} -> {out}
  return %out : {out}
}}"""
