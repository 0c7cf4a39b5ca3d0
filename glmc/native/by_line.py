"""Which of the native library's kernels each line of a region's text becomes."""

from __future__ import annotations

import ast
from typing import Any

from glmc.native.calls import Call
from glmc.native.walk import Lowerer
from glmc.program import Region


class _Noting(Lowerer):
    def __init__(self, region: Region) -> None:
        super().__init__(region)
        self.noted: list[tuple[str, Call]] = []

    def call(self, *args: Any, **given: Any) -> int:
        number = super().call(*args, **given)
        line: Any = self.lines[len(self.env) - len(self.region.inputs)]  # the first that has no value yet
        self.noted.append((ast.unparse(line.targets[0]), self.calls[number]))
        return number


def kernels_by_line(region: Region) -> dict[str, list[str]]:
    """Line -> the kernels that are called for it; a line whose work another call does has none. Raises Refused."""
    noting = _Noting(region)
    kept = {id(call) for call in noting.done().calls}
    found: dict[str, list[str]] = {}
    for line, call in noting.noted:
        if id(call) in kept:
            found.setdefault(line, []).append(call.kernel)
    return found
