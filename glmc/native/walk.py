"""The walk over a region's lines that turns them into calls: values by name, registers, who reads what."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable
from typing import Any

from glmc.native.cache import parts_of
from glmc.native.calls import Call, Index, Lowered, Need, Refused, Rows, State, Weight
from glmc.program import Region, Spec

Handler = Callable[..., Any]
_TOLD = {"input_ids": "ids", "where": "positions", "ends": "ends", "features": "features"}
"""Inputs that the step itself knows -> what of it they are; all whole numbers do, by their own names where none is here."""
HANDLERS: dict[str, Handler] = {}
"""An op's name in a region's text -> what makes calls of it: handler(lowerer, the line's name, arguments ...)."""


def op(*names: str) -> Callable[[Handler], Handler]:
    """The function is the handler of these ops."""
    def keep(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler
    return keep


class Lowerer:
    """Walks a region's lines with a handler for each op; see `lower`. caches: the region's caches by its own names."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self.caches = {name: spec for name, role, spec in region.inputs if role == "cache"}
        if self.caches:
            parts_of(self.caches)
        self.calls: list[Call] = []
        self.widths: dict[int, int] = {}
        self.inputs: dict[str, int] = {}
        self.needs: dict[str, Need] = {}
        self.env: dict[str, Any] = {}
        for name, role, spec in region.inputs:
            self.env[name] = self._input(name, role, spec)
        self.lines = [ast.parse(text).body[0] for text in region.body]
        self.uses = Counter(n.id for line in self.lines for n in ast.walk(line)
                            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))
        self.made: dict[int, str] = {}  # register -> the line that made it

    def _input(self, name: str, role: str, spec: Spec) -> Any:
        if role == "weight":
            return Weight(name, spec)
        if role == "cache":
            return State(name, spec)
        if spec.dtype == "bool":
            return Index("mask")
        if name == "positions" and spec.shape != ("B", "S"):  # of several axes: what RoPE turns by
            return Index("turns")
        if spec.dtype == "int64" or name in _TOLD:
            return Index(_TOLD.get(name, name))
        width = spec.shape[-1] if spec.shape else None
        if not isinstance(width, int):
            raise Refused(f"the rows of {name} have no fixed width")
        self.inputs[name] = reg = self.register(width)
        return Rows(reg, 0, self.widths[reg])

    def register(self, width: int) -> int:
        reg = len(self.widths)
        self.widths[reg] = width
        return reg

    def done(self) -> Lowered:
        for line in self.lines[:-1]:
            if not (isinstance(line, ast.Assign) and isinstance(line.value, ast.Call)):
                raise Refused(f"`{ast.unparse(line)}` is no call")
            target, call = ast.unparse(line.targets[0]), line.value
            handler = HANDLERS.get(ast.unparse(call.func))
            if handler is None:
                raise Refused(f"no native kernel for {ast.unparse(call.func)}")
            given = {str(k.arg): self._value(k.value) for k in call.keywords}
            self.env[target] = value = handler(self, target, *[self._value(a) for a in call.args], **given)
            if isinstance(value, Rows):
                self.made.setdefault(value.reg, target)
        self._count()
        last: Any = self.lines[-1]
        outputs = [self.env[e.id] for e in last.value.elts]
        if not all(isinstance(o, Rows | Index) for o in outputs):
            raise Refused("a result is neither rows nor a mask")
        return Lowered(self.region, self.calls, self.widths, self.inputs,
                       tuple(self.whole(o).reg if isinstance(o, Rows) else None for o in outputs), self.needs)

    def _count(self) -> None:
        """Note of every call for how many tokens it makes one row."""
        per = dict.fromkeys(self.inputs.values(), 1)
        for call in self.calls:
            read = {per[p.reg] for p in call.p if isinstance(p, Rows) and p.reg in per}
            if len(read) > 1:
                raise Refused("rows of tokens beside rows of blocks of tokens")
            call.per = max(read, default=1) * (call.n[1] if call.kernel == "merge_rows" else 1)
            per.update(dict.fromkeys(call.writes, call.per))

    def _value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return self.env[node.id]
        if isinstance(node, ast.List):
            return [self._value(e) for e in node.elts]
        text = ast.unparse(node)
        return text if text.startswith("torch.") else ast.literal_eval(node)

    @property
    def half(self) -> bool:
        """Whether the region's numbers are bfloat16."""
        return any(spec.dtype == "bfloat16" for _, _, spec in self.region.inputs)

    def call(self, kernel: str, n: list[Any], p: list[Any], f: list[float] | None = None, writes: tuple[int, ...] = ()) -> int:
        self.calls.append(Call(kernel, n, p, f or [], writes))
        return len(self.calls) - 1

    def new(self, width: int) -> Rows:
        return Rows(self.register(width), 0, width)

    @staticmethod
    def equal(found: Any, wanted: Any) -> None:
        """Sizes that must be, since nothing checks them later."""
        if found != wanted:
            raise Refused(f"sizes that do not fit: {found} and {wanted}")

    def need(self, weight: Any, need: Need, width: int | None = None) -> Weight:
        """Note how a weight is wanted, and that its last size is `width`."""
        if not isinstance(weight, Weight):
            raise Refused("a product's second operand is not a weight")
        if width is not None:
            self.equal(weight.spec.shape[-1], width)
        before = self.needs.get(weight.name, need)
        if before != need:
            raise Refused(f"{weight.name} is wanted in two forms")
        self.needs[weight.name] = need
        return weight

    def vector(self, weight: Any, width: int | None = None) -> Weight | None:
        return None if weight is None else self.need(weight, Need("vector"), width)

    def rows(self, value: Any) -> Rows:
        if not isinstance(value, Rows) or value.swapped:
            raise Refused("an operand is not rows of activations")
        return value

    def whole(self, value: Any) -> Rows:
        rows = self.rows(value)
        if rows.offset or rows.width != self.widths[rows.reg]:
            raise Refused("a part of a row is used where a whole one is wanted")
        return rows

    def single(self, rows: Rows, kernel: str) -> Call | None:
        """The call that makes the whole of `rows`, if it is of this kernel and one step alone reads its result."""
        name = self.made.get(rows.reg)
        if name is None or self.uses[name] != 1 or rows.width != self.widths[rows.reg]:
            return None
        return next((c for c in self.calls if c.writes == (rows.reg,) and c.kernel == kernel), None)

    def written_before(self, rows: Rows, call: Call) -> bool:
        return all(rows.reg not in c.writes for c in self.calls[self.calls.index(call):])
