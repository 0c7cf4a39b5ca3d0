"""A tensor at a region's edge, as text: `weight bfloat16 [5120, 64]`. No torch."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass

from glmc.errors import DamagedArtifact

_SPEC = re.compile(r"^(?:(value|weight|cache) )?(\w+) \[(.*)\]$")


@dataclass(frozen=True)
class Spec:
    """A tensor at a region's edge: dtype name and sizes, each a number or an expression in B, S, L."""

    dtype: str
    shape: tuple[int | str, ...]

    def text(self) -> str:
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"

    def at(self, letters: Mapping[str, int]) -> list[int]:
        """The sizes where letters have these values. Raises DamagedArtifact for what is no sum or product of letters."""
        return [size if isinstance(size, int) else _value(ast.parse(size, mode="eval").body, letters) for size in self.shape]

    @staticmethod
    def parse(text: str) -> tuple[str | None, Spec]:
        """(role or None, spec) from `Spec.text`, with or without a role before it."""
        found = _SPEC.match(text)
        if not found:
            raise DamagedArtifact("a tensor of a region is not written as `role dtype [sizes]`", found=text)
        sizes = tuple(int(s) if s.isdigit() else s for s in (p.strip() for p in found[3].split(",")) if s)
        return found[1], Spec(found[2], sizes)


def _value(size: ast.expr, letters: Mapping[str, int]) -> int:
    match size:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name) if name in letters:
            return letters[name]
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return _value(left, letters) + _value(right, letters)
        case ast.BinOp(op=ast.Mult(), left=left, right=right):
            return _value(left, letters) * _value(right, letters)
    raise DamagedArtifact("a size is no sum or product of known letters", found=ast.unparse(size))
