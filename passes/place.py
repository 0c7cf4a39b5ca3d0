"""One rank's program out of the whole one: weights cut by the model's published plan, steps between regions where ranks add up.

Each region's lines are walked with what each value is (passes/place_rules.py). Where a line needs the whole of what the ranks
have parts of a sum of, the region ends, an `all_reduce` follows, and another region begins; nothing moves inside a region. What
does not work out makes the entries of the plan that led there count for nothing, and the walk begins again; a reason is kept.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from glmc.passes import place_views  # noqa: F401  its rules
from glmc.passes.place_rules import RULES, NeedsSum, NotPlaced, Shape, Site, Value, otherwise
from glmc.placement import Cut, Placement
from glmc.program import Program, Region, Spec, Step

_ROWS, _HALVES, _COLUMNS = "rows", "halves", "columns"
_STYLES = {"colwise": _ROWS, "packed_colwise": _HALVES, "colwise_gather_output": _ROWS, "rowwise": _COLUMNS,
           "rowwise_split_input": _COLUMNS}
"""transformers' name of a way to cut -> what is cut: each part's rows, the rows of two halves, columns. Others cut nothing."""
_GATE_UP = "gate_up_proj"
"""A published matrix of two halves, which transformers gathers before it chunks: cut by halves, nothing need be gathered."""
Joined = Mapping[str, tuple[tuple[str, int], ...]]
"""A weight that is several published ones, one after another -> their names and rows."""


@dataclass(frozen=True)
class Plan:
    """entries: the published plan, a module's path with * for a layer -> its style. joined: see `Joined`."""

    entries: Mapping[str, str]
    joined: Joined

    def without(self, keys: Iterable[str]) -> Plan:
        return Plan({key: style for key, style in self.entries.items() if key not in set(keys)}, self.joined)

    def cut(self, weight: str, shape: tuple[int, ...]) -> tuple[Cut | None, frozenset[str]]:
        """How a weight is cut, and the entries that say so."""
        parts = self.joined.get(weight, ((weight, shape[-2] if len(shape) > 1 else shape[0]),))
        keys = [self._entry(name) for name, _ in parts]
        ways = {None if key is None else _STYLES.get(self.entries[key]) for key in keys}
        if None in ways or len(ways) > 1:
            return None, frozenset()
        (way,), why = ways, frozenset(key for key in keys if key)
        if way == _COLUMNS:
            return (Cut(-1, (shape[-1],)) if len(shape) > 1 else None), why
        sizes = [rows for _, rows in parts]
        if way == _HALVES or any(key and key.endswith(_GATE_UP) for key in keys):
            sizes = [half for rows in sizes for half in (rows // 2, rows - rows // 2)]
        return Cut(-2 if len(shape) > 1 else -1, tuple(sizes)), why

    def _entry(self, weight: str) -> str | None:
        """The entry for a parameter; a shared expert's is that of the same matrix of an MLP where it has none of its own."""
        for name in (weight, weight.replace(".shared_experts.", ".")):
            for key in self.entries:
                path = re.escape(key).replace(r"\*", "[0-9]+")
                if re.fullmatch(rf"(?:model\.)?(?:language_model\.)?{path}(?:\.weight|\.bias)?", name):
                    return key
        return None


def place(program: Program, plan: Plan) -> tuple[Placement | None, list[str]]:
    """The program for ranks, None where there is none, and notes: what is whole on every rank though the plan cuts it, and why.
    """
    notes: list[str] = []
    heads = frozenset(key for key in plan.entries if "*" not in key)
    layers = _settled(program, plan.without(heads), notes)
    if layers is None or not layers.cuts:
        return None, [*notes, "several ranks cannot run this model: the published plan cuts nothing of it"]
    if layers.most == 1:
        sizes = sorted({size for region in layers.program.regions.values() for size in region.shares()})
        return None, [*notes, f"several ranks cannot run this model: no number of them divides {', '.join(map(str, sizes))}"]
    alive = {key for key in plan.entries if key in heads or any(key in why for why in layers.why.values())}
    both = _settled(program, plan.without(plan.entries.keys() - alive), notes)
    if both is None or both.most != layers.most:
        notes.append(f"the head is whole on every rank: not every number of ranks that divides {layers.most} divides its rows")
        both = layers
    return Placement(both.program, both.cuts), [*notes, _summary(program, both)]


def _summary(program: Program, found: Placement) -> str:
    """What is cut, and which matrices every rank has whole."""
    specs = program.weights()
    whole = {re.sub(r"\b\d+\b", "*", name) for name, spec in specs.items() if len(spec.shape) > 1 and name not in found.cuts}
    return (f"for several ranks {len(found.cuts)} of {len(specs)} weights are cut"
            + (f"; whole matrices: {', '.join(sorted(whole))}" if whole else ""))


@dataclass(frozen=True)
class _Found(Placement):
    why: Mapping[str, frozenset[str]] = field(default_factory=dict)


def _settled(program: Program, plan: Plan, notes: list[str]) -> _Found | None:
    """The program with what of the plan works out; what does not is told in `notes`. None where nothing does."""
    while plan.entries:
        try:
            return _Walk(program, plan).done()
        except NotPlaced as reason:
            why = reason.why or plan.entries.keys()
            notes.append(f"whole on every rank: {', '.join(sorted(why))}: {reason}")
            plan = plan.without(why)
    return None


@dataclass(frozen=True)
class _Piece:
    """A region's piece: inputs and results by the region's own names. moves: (value, move) of what follows it."""

    region: Region
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    moves: tuple[tuple[str, str], ...]


class _Walk:
    def __init__(self, program: Program, plan: Plan) -> None:
        self.program, self.plan = program, plan
        self.regions: dict[str, Region] = {}
        self.cuts: dict[str, Cut] = {}
        self.why: dict[str, frozenset[str]] = {}
        self.found: dict[Any, list[_Piece]] = {}
        self.count = 1 + max(int(name.rpartition(":")[2]) for step in program.steps for name in step.outputs)

    def done(self) -> _Found:
        steps: list[Step] = []
        seen: dict[str, Cut | None] = {}
        for step in self.program.steps:
            region = self.program.regions[step.region]
            seeds: dict[str, tuple[Cut | None, frozenset[str]]] = {}
            for name, (local, role, spec) in zip(step.inputs, region.inputs, strict=True):
                if role == "weight":
                    weight = name.removeprefix("weight:")
                    cut, why = self.plan.cut(weight, tuple(int(s) for s in spec.shape))
                    seeds[local] = cut, why
                    seen[weight] = cut
                    if cut:
                        self.cuts[weight], self.why[weight] = cut, why
            key = step.region, tuple(sorted((n, c, tuple(sorted(w))) for n, (c, w) in seeds.items() if c))
            if key not in self.found:
                self.found[key] = _Pieces(region, seeds).pieces()
            steps += self._steps(step, region, self.found[key])
        program = Program(self.regions, tuple(steps), self.program.logits, mode="tensor_parallel")
        program.check()
        return _Found(program, self.cuts, why=self.why)

    def _steps(self, step: Step, region: Region, pieces: list[_Piece]) -> list[Step]:
        names = dict(zip((local for local, _, _ in region.inputs), step.inputs, strict=True))
        last: Any = ast.parse(region.body[-1]).body[0]
        final = dict(zip((e.id for e in last.value.elts), step.outputs, strict=True))
        made = []
        for piece in pieces:
            self.regions[piece.region.name] = piece.region
            inputs = tuple(names[local] for local in piece.inputs)
            moved = {local for local, _ in piece.moves}
            for local in piece.outputs:
                names[local] = self._new() if local in moved or local not in final else final[local]
            made.append(Step(piece.region.name, inputs, tuple(names[local] for local in piece.outputs), step.rows))
            for local, move in piece.moves:
                before, names[local] = names[local], final.get(local) or self._new()
                made.append(Step(move, (before,), (names[local],), fixed={"dim": -1} if move == "all_gather" else {}))
        return made

    def _new(self) -> str:
        self.count += 1
        return f"value:{self.count - 1}"


class _Pieces:
    """One region, walked."""

    def __init__(self, region: Region, seeds: Mapping[str, tuple[Cut | None, frozenset[str]]]) -> None:
        self.region = region
        self.roles = {name: role for name, role, _ in region.inputs}
        self.env: dict[str, Any] = {}
        for name, role, spec in region.inputs:
            cut, why = seeds.get(name, (None, frozenset()))
            self.env[name] = Value(spec.dtype, spec.shape, cut, False, why if cut else frozenset(), role == "weight")
        self.caches = {name: self.env[name] for name, role, _ in region.inputs if role == "cache"}
        self.sizes: dict[str, str] = {}
        """Lines that read a size, which every piece reads for itself."""
        self.bodies: list[list[tuple[str, str]]] = [[]]
        self.sums: list[list[str]] = []
        self.results: dict[str, Spec] = {}

    def pieces(self) -> list[_Piece]:
        lines: list[Any] = [ast.parse(text).body[0] for text in self.region.body]
        for line in lines[:-1]:
            self._line(line)
        results = [e.id for e in lines[-1].value.elts]
        self.results = dict(zip(results, self.region.outputs, strict=True))
        partial = [name for name in dict.fromkeys(results) if self.env[name].partial]
        cut = [name for name in dict.fromkeys(results) if self.env[name].cut]
        wrong = [name for name in cut if self.env[name].cut.dim != -1 or len(self.env[name].cut.parts) > 1]
        if wrong:
            raise NotPlaced(f"{wrong[0]} ends as parts that do not follow one another", self.env[wrong[0]].why)
        self.sums.append(partial)
        moves = [[(name, "all_reduce") for name in names] for names in self.sums]
        moves[-1] += [(name, "all_gather") for name in cut]
        return self._written(moves, results)

    def _line(self, line: ast.Assign) -> None:
        name, call = ast.unparse(line.targets[0]), line.value
        if not isinstance(call, ast.Call):
            raise NotPlaced(f"a line that is no call: {ast.unparse(line)}", frozenset())
        while True:
            names = {id(self.env[n.id]): n.id for n in ast.walk(call) if isinstance(n, ast.Name) and n.id in self.env}
            site = Site(call, names)
            function = RULES.get(ast.unparse(call.func), otherwise)
            given = {str(k.arg): self._value(k.value) for k in call.keywords}
            try:
                found = function(site, *[self._value(a) for a in call.args], **given)
                break
            except NeedsSum as sum_:
                self._end(sum_.name)
        self.env[name] = found
        text = ast.unparse(line)
        if ast.unparse(call.func) == "aten.sym_size.int":
            self.sizes[name] = text
            return
        self.caches |= site.written
        self.bodies[-1].append((name, text))

    def _end(self, name: str) -> None:
        """The piece ends, and ranks add up what they have of `name`."""
        if name not in {made for made, _ in self.bodies[-1]}:
            raise NotPlaced(f"{name} is needed whole behind the piece that makes it", self.env[name].why)
        self.sums.append([name])
        self.bodies.append([])
        self.env[name] = dataclasses.replace(self.env[name], partial=False, why=frozenset())

    def _value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return self.env.get(node.id, node.id)
        if isinstance(node, ast.List):
            return [self._value(e) for e in node.elts]
        try:
            return ast.literal_eval(node)
        except ValueError:  # a dtype, or an infinity
            return ast.unparse(node)

    def _written(self, moves: list[list[tuple[str, str]]], results: list[str]) -> list[_Piece]:
        reads = [self._reads(body) for body in self.bodies]
        found = []
        for number, body in enumerate(self.bodies):
            made = {name for name, _ in body}
            later = {name for each in reads[number + 1:] for name in each} | set(results)
            outputs = [name for name in [n for n, _ in body] if name in later or name in dict(moves[number])]
            own = [size for size in self.sizes if size in reads[number]]
            inputs = [n for n in dict.fromkeys([*(self._source(size) for size in own), *reads[number]])
                      if n not in made and n not in self.sizes]
            whole = number == 0 and len(self.bodies) == 1
            if whole:
                inputs, outputs = [name for name, _, _ in self.region.inputs], results
            lines = [*(self.sizes[size] for size in own), *(text for _, text in body)]
            lines.append(f"return ({', '.join(outputs)}{',' if len(outputs) == 1 else ''})")
            specs = tuple((name, self.roles.get(name, "value"), self._spec(name)) for name in inputs)
            region = Region(self.region.kind, specs, tuple(self._spec(name) for name in outputs), tuple(lines))
            if whole and not region.shares() and len(moves[number]) == 0:
                region = self.region
            else:
                region = dataclasses.replace(region, name=f"{region.name}_{Region.digest(region.text())}")
            found.append(_Piece(region, tuple(inputs), tuple(outputs), tuple(moves[number])))
        return found

    def _reads(self, body: list[tuple[str, str]]) -> list[str]:
        """Names that a piece's lines read, in order."""
        return list(dict.fromkeys(n.id for _, text in body for n in ast.walk(ast.parse(text))
                                  if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load) and n.id in self.env))

    def _source(self, size: str) -> str:
        return self.sizes[size].partition("(")[2].partition(",")[0]

    def _spec(self, name: str) -> Spec:
        """A value's dtype and sizes on a rank."""
        value = self.caches.get(name, self.env[name])
        shape: Shape | None = self.results[name].shape if name in self.results else value.shape
        if shape is None:
            raise NotPlaced(f"the shape of {name} is not known, and it goes from one piece to the next", self._any())
        if value.cut:
            at = len(shape) + value.cut.dim
            shape = tuple(f"{n}//N" if i == at else n for i, n in enumerate(shape))
        return Spec(value.dtype, shape)

    def _any(self) -> frozenset[str]:
        return frozenset().union(*(value.why for value in self.env.values() if isinstance(value, Value)))
