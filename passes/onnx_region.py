"""A region as one function of an ONNX model: each line of its text becomes a few nodes, fused ops by their kernels' `emit`.

Inputs and outputs are the region's own, and after them each cache that it writes, as it is then.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Callable
from typing import Any

from glmc import kernels
from glmc.errors import UnsupportedTarget
from glmc.kernels.onnx import function, value
from glmc.passes.onnx_ops import TABLE
from glmc.program import WRITES, Place, Program, Region
from glmc.region import argument, line, returned, written

MACHINE = "onnx"
_LAYER = re.compile(r"(?:.*\.)?layers\.\d+")


def check(program: Program) -> None:
    """Raises UnsupportedTarget for the first step of any region that ONNX is not written for: its op, its module."""
    for region in program.regions.values():
        for number, text in enumerate(region.body[:-1]):
            name = ast.unparse(line(ast.parse(text).body[0])[1].func)
            if _emitter(name) is None:
                raise UnsupportedTarget(f"the target {MACHINE} has nothing for an op of this model", field=name,
                                        found=_module(program, region, number))


def function_of(region: Region, domain: str) -> Any:
    """The region as a function of `domain` under its own name. Call `check` before."""
    values = [value(name, spec.dtype, spec.shape) for name, _, spec in region.inputs]

    def body(op: Any, *inputs: Any) -> list[Any]:
        env: dict[str, Any] = dict(zip((name for name, _, _ in region.inputs), inputs, strict=True))
        parsed = [ast.parse(text).body[0] for text in region.body]
        for statement in parsed[:-1]:
            name, call = line(statement)
            told = ast.unparse(call.func)
            emit = _emitter(told)
            if emit is None:
                raise UnsupportedTarget(f"the target {MACHINE} has nothing for an op of this model", field=told)
            env[name] = emit(op, *(argument(a, env) for a in call.args),
                             **{str(k.arg): argument(k.value, env) for k in call.keywords})
            made = env[name]
            if getattr(made, "producer", None) and made.producer() is not None and made.name not in env:
                made.name = name
            if WRITES.get(told) == (0,):  # no kernel here writes several
                env[ast.unparse(call.args[0])] = env[name]
        return [*returned(parsed[-1:], env), *(env[name] for name in written(region))]

    return function(domain, region.name, values, body)


def _emitter(name: str) -> Callable | None:
    """What writes an op of a region's text, by its name there; None where nothing does."""
    space, _, op = name.partition(".")
    if space == "glmc" and kernels.has(op, MACHINE):
        return importlib.import_module(f"glmc.kernels.{op}.{MACHINE}").emit
    return TABLE.get(name)


def _module(program: Program, region: Region, number: int) -> str:
    """The published module around a line of a region's text: the one of the fewest lines that holds it."""
    statements = [ast.parse(text).body[0] for text in region.body[:-1]]
    read = {line(s)[0]: {n.id for n in ast.walk(line(s)[1]) if isinstance(n, ast.Name)} for s in statements}
    wanted = line(statements[number])[0]
    around = {module: inside for module, place in program.places.get(region.name, {}).items()
              if wanted in (inside := _lines(place, read))}
    step = next(step for step in program.steps if step.region == region.name)
    layer = next((found[0] for name in step.inputs if (found := _LAYER.match(name.removeprefix("weight:")))), None)
    module = min(around, key=lambda module: len(around[module]), default=None)
    return ".".join(part for part in (layer, module) if part) or region.kind


def _lines(place: Place, read: dict[str, set[str]]) -> set[str]:
    """The lines between a module's inputs and its outputs, by their names."""
    inside: set[str] = set()
    ahead = [name.partition("[")[0] for name in place.outputs]
    while ahead:
        name = ahead.pop()
        if name in read and name not in inside and name not in place.inputs:
            inside.add(name)
            ahead += read[name]
    return inside
