"""How weights are kept where the native library does not read them: for kernels of GPUs matrices that stay in codes of their
checkpoint and those that are read in float32 alone, for other compilers matrices in panels; the rest as the text has them.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping

from glmc.native.keep import Keep
from glmc.program import Program, Region

_LINEAR = {"aten.linear.default": (1,)}
_MATRICES = {**_LINEAR, "glmc.moe_experts": (3, 4)}
"""Ops whose kernels for GPUs take a coded matrix -> which of their arguments it is."""


def forms_for_gpu(program: Program, sources: Mapping[str, str], gpu: bool = True) -> dict[str, Keep]:
    """Of the weights that `sources` names with their form those that only products read, kept so for kernels of GPUs, or in
    panels for compilers that take them in plain products. For GPUs also those of a router, which are only read in float32:
    made so once and not in every step."""
    found: dict[str, Keep] = {}
    others: set[str] = set()
    products = {name: _products(region, _MATRICES if gpu else _LINEAR) for name, region in program.regions.items()}
    widened = {name: _widened(region) for name, region in program.regions.items()}
    for step in program.steps:
        if step.moves:
            continue
        for name, (local, role, spec) in zip(step.inputs, program.regions[step.region].inputs, strict=True):
            weight = name.removeprefix("weight:")
            form = sources.get(weight, "wide" if gpu and spec.dtype != "float32" else None)
            if role != "weight" or form is None:
                continue
            if local not in (products if weight in sources else widened)[step.region]:
                others.add(weight)
            found[weight] = Keep(form, tuple(int(s) for s in spec.shape), spec.dtype, gpu=gpu and form != "wide")
    return {weight: keep for weight, keep in found.items() if weight not in others}


def _products(region: Region, ops: Mapping[str, tuple[int, ...]]) -> set[str]:
    """The weights of a region that stand nowhere but as the matrix of a product."""
    matrices: set[str] = set()
    elsewhere: set[str] = set()
    for line in region.body:
        for call in ast.walk(ast.parse(line)):
            if isinstance(call, ast.Call):
                places = ops.get(ast.unparse(call.func), ())
                for number, argument in enumerate([*call.args, *(k.value for k in call.keywords)]):
                    names = {n.id for n in ast.walk(argument) if isinstance(n, ast.Name)}
                    (matrices if number in places and number < len(call.args) else elsewhere).update(names)
    return matrices - elsewhere


def _widened(region: Region) -> set[str]:
    """The weights of a region that stand nowhere but where they are made float32."""
    calls = [call for line in region.body for call in ast.walk(ast.parse(line)) if isinstance(call, ast.Call)]
    casts = {ast.unparse(call.args[0]) for call in calls
             if ast.unparse(call.func) == "aten.to.dtype" and ast.unparse(call.args[1]) == "torch.float32"}
    uses = Counter(name.id for line in region.body for name in ast.walk(ast.parse(line)) if isinstance(name, ast.Name))
    return {name for name in casts if uses[name] == 1}
