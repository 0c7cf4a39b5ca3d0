"""Saying which op of a model, of which module, a compiler of others does not take."""

from __future__ import annotations

import re

from glmc.errors import GlmcError, InternalError, UnsupportedTarget
from glmc.program import Program, Region
from glmc.target import Target

_OP = re.compile(r"(?:torch\.)?((?:aten|glmc|prims|prim)\.\w+(?:\.\w+)?)")
_LAYER = re.compile(r"^weight:(.*?(?:layers|blocks?)\.\d+)\.")


def refused(program: Program, fault: InternalError, target: Target) -> GlmcError:
    """What to say in the place of `fault`, whose field is the region and form that a compiler stopped at, if an op is named."""
    name, _, form = (fault.field or "").partition(".")
    ops = list(dict.fromkeys(_OP.findall(str(fault))))
    if not ops:
        return fault
    path = module_of(program, program.regions[name], ops) if name in program.regions else None
    return UnsupportedTarget("the target cannot take an op of this model", field=path or f"{name}, {form}",
                             expected=f"ops that {target.name} has", found=f"{ops[0]} for {target.name}",
                             hint=f"--target cpu runs it; the compiler said: {fault.what[:1500]}")


def module_of(program: Program, region: Region, ops: list[str]) -> str | None:
    """The published module in which the first of `ops` stands that the region's text has; None where it has none of them."""
    lines = {line.partition(" = ")[0]: number for number, line in enumerate(region.body)}
    at = next((number for op in ops for number, line in enumerate(region.body) if f" = {op}" in line), None)
    if at is None:
        return None
    weights = (_LAYER.match(name) for step in program.steps if step.region == region.name for name in step.inputs)
    layer = next((found[1] for found in weights if found), "")
    # The module that ends first behind the line; of several with the same end the innermost.
    ends = [(min(made), -len(path), path) for path, place in program.places.get(region.name, {}).items()
            if (made := [lines[out.partition("[")[0]] for out in place.outputs if lines.get(out.partition("[")[0], -1) >= at])]
    return ".".join(part for part in (layer, min(ends)[2] if ends else "") if part) or None
