"""A region's text as steps that can be drawn: what each reads, which weights and caches it is bound to. No torch."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass

from glmc.program import Region

_SIZES = re.compile(r"aten\.sym_size\.int$|operator\.(?!getitem)|math\.|torch\.sym_")
_DTYPES = {"bfloat16": "bf16", "float16": "f16", "float32": "f32", "float64": "f64", "int64": "i64", "int32": "i32"}
RESULT = "return"


@dataclass(frozen=True)
class Step:
    """One node of a drawing. kind: input, step or result. op: as the text has it, "" of an input. reads: steps and inputs.

    shape: dtypes and sizes of what it makes, "" where that is not known. weights, caches: (name in the region, sizes).
    """

    name: str
    kind: str
    op: str
    reads: tuple[str, ...]
    shape: str
    weights: tuple[tuple[str, str], ...] = ()
    caches: tuple[tuple[str, str], ...] = ()

    @property
    def title(self) -> str:
        """rms_norm of glmc.rms_norm, linear of aten.linear.default; an input's own name."""
        return self.op.split(".")[1] if "." in self.op else self.op or self.name

    @property
    def fused(self) -> bool:
        return self.op.startswith("glmc.")


def steps(region: Region, shapes: Mapping[str, str]) -> list[Step]:
    """Inputs that are read as values, each line, the result, in the text's order.

    Whole numbers made of sizes are left out, and results picked of several count as the step that made them.
    """
    roles = {name: (role, spec.text()) for name, role, spec in region.inputs}
    made = [Step(name, "input", "", (), text) for name, (role, text) in roles.items() if role == "value"]
    stands: dict[str, str] = {step.name: step.name for step in made}  # a name in the text -> the step that is drawn for it
    for line in region.body:
        statement = ast.parse(line).body[0]
        names = list(dict.fromkeys(n.id for n in ast.walk(statement)
                                   if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)))
        reads = tuple(dict.fromkeys(stands[n] for n in names if n in stands))
        if isinstance(statement, ast.Return):
            made.append(Step(RESULT, "result", "", reads, "; ".join(spec.text() for spec in region.outputs)))
            continue
        if not (isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
                and isinstance(statement.value, ast.Call)):
            continue
        name, op = statement.targets[0].id, ast.unparse(statement.value.func)
        if op == "operator.getitem" and len(reads) == 1:
            stands[name] = reads[0]
            continue
        if _SIZES.match(op) and name not in shapes:
            continue
        stands[name] = name
        bound = {role: tuple((n, roles[n][1]) for n in names if n in roles and roles[n][0] == role)
                 for role in ("weight", "cache")}
        made.append(Step(name, "step", op, reads, shapes.get(name, ""), bound["weight"], bound["cache"]))
    return made


def short(shape: str) -> str:
    """bf16 [B, S, 64] of bfloat16 [B, S, 64]."""
    return re.sub(r"\b[a-z]+\d+\b(?= \[)", lambda found: _DTYPES.get(found[0], found[0]), shape)
