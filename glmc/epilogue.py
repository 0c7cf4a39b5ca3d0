"""Lines of a region joined, for machines whose product does what stands around it in the same launch. No torch.

    linear_3 = aten.linear.default(silu_mul, down)
    add = aten.add.Tensor(x_1, linear_3)                  becomes  add = glmc.linear(silu_mul, down, None, [x_1])

    linear_2 = aten.linear.default(x, gate_up)
    slice = aten.slice.Tensor(linear_2, -1, 0, 96, 1)
    slice_1 = aten.slice.Tensor(linear_2, -1, 96, 9223372036854775807, 1)
    silu_mul = glmc.silu_mul(slice, slice_1)              becomes  silu_mul = glmc.linear(x, gate_up, None, gated=True)

    to = aten.to.dtype(x, torch.float32)
    to_1 = aten.to.dtype(gate, torch.float32)
    linear = aten.linear.default(to, to_1)                becomes  linear = glmc.linear(x, gate, None, wide=True)

The text in the artefact stays as it is: lines are joined where a region is bound.
"""

from __future__ import annotations

import ast
import dataclasses
from collections import Counter
from dataclasses import dataclass

from glmc.program import WRITES, Program, Region

MACHINES = frozenset({"triton"})
"""Machines whose `glmc.linear` does what follows a product."""
JOINED, GATED, WIDE = "glmc.linear", "gated=True", "wide=True"
TERMS = 2
"""The most tensors that a product adds to itself."""
_END = 2**63 - 1


@dataclass(frozen=True)
class _Product:
    """A product that a later line may be joined with: its arguments as text, how many outputs they are known to have, whether
    it widens what it reads, and the terms that are added to it already."""

    given: str
    outputs: int | str | None
    wide: bool
    terms: tuple[str, ...] = ()

    def line(self, gated: bool = False) -> str:
        """The call that does it all."""
        terms = [f"[{', '.join(self.terms)}]"] if self.terms else []
        return f"{JOINED}({', '.join([self.given, *terms, *[GATED] * gated, *[WIDE] * self.wide])})"


def joined(region: Region) -> Region:
    """The region with products and what stands around them as one line each, which stands where the last of its lines stood.

    Joined are a product that nothing else reads and a sum with it, up to TERMS times; a product that nothing else reads and
    SiLU of its first half times its second; and a product and the widening to float32 of what it alone reads. Nothing moves
    past a line that writes into memory. The values in between are no longer made; all others keep their names. Whether a term
    has the product's shape and dtype is known only where it runs.
    """
    parsed = [ast.parse(text).body[0] for text in region.body]
    uses = Counter(node.id for line in parsed for node in ast.walk(line)
                   if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
    calls = {line.targets[0].id: line.value for line in parsed
             if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name) and isinstance(line.value, ast.Call)}
    if len(calls) < len(parsed) - 1:
        return region  # which cannot be bound
    outputs = {name: spec.shape[0] for name, role, spec in region.inputs if role == "weight" and spec.shape}
    lines: dict[str, str] = {}
    products: dict[str, _Product] = {}
    narrow: dict[str, str] = {}
    for name, call in calls.items():
        op, lines[name] = ast.unparse(call.func), ast.unparse(call)
        if op in WRITES or op.partition(".")[2].partition(".")[0].endswith("_"):
            products.clear()
            narrow.clear()
        match op, call.args, call.keywords:
            case "aten.to.dtype", [ast.Name(value), dtype], [] if ast.unparse(dtype) == "torch.float32" and uses[name] == 1:
                narrow[name] = value
            case "aten.linear.default", [ast.Name(x), ast.Name(weight), *bias], []:
                widened = narrow.keys() & {x, weight}
                given = narrow.get(x, x), narrow.get(weight, weight), *map(ast.unparse, bias or [ast.Constant(None)])
                products[name] = _Product(", ".join(given), outputs.get(given[1]), bool(widened))
                for value in widened:
                    lines[name] = products[name].line()
                    del lines[value]
            case "aten.add.Tensor", [ast.Name(left), ast.Name(right)], []:
                for value, term in ((right, left), (left, right)):
                    if value in products and uses[value] == 1 and len(products[value].terms) < TERMS:
                        products[name] = dataclasses.replace(products[value], terms=(*products[value].terms, term))
                        lines[name] = products[name].line()
                        del lines[value]
                        break
            case "glmc.silu_mul", [ast.Name(gate), ast.Name(up)], []:
                for value, product in products.items():
                    if (uses[value], uses[gate], uses[up]) == (2, 1, 1) and not product.terms and (
                            lines.get(gate), lines.get(up)) == _halves(value, product.outputs):
                        lines[name] = product.line(gated=True)
                        del lines[value], lines[gate], lines[up]
                        break
    return dataclasses.replace(region, body=(*(f"{name} = {call}" for name, call in lines.items()), *region.body[-1:]))


def _halves(value: str, outputs: int | str | None) -> tuple[str, str] | None:
    """The two slices of a product that are its gates and its ups; None where it is not known to have two halves."""
    if not isinstance(outputs, int) or outputs % 2:
        return None
    return (f"aten.slice.Tensor({value}, -1, 0, {outputs // 2}, 1)",
            f"aten.slice.Tensor({value}, -1, {outputs // 2}, {_END}, 1)")


def counted(program: Program) -> dict[str, int]:
    """The products of one run of a program, and how many of them in their launch join gate and up, add terms, and widen."""
    calls = Counter(step.region for step in program.steps)
    found: Counter[str] = Counter(products=0, gated=0, adding=0, widening=0)
    for name, region in program.regions.items():
        lines = [line for line in joined(region).body if f" = {JOINED}(" in line]
        here = {"products": list(region.ops().values()).count("aten.linear.default"), "gated": sum(GATED in t for t in lines),
                "adding": sum("[" in t for t in lines), "widening": sum(WIDE in t for t in lines)}
        found.update({kind: calls[name] * count for kind, count in here.items()})
    return dict(found)
