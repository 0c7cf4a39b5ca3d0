"""A program, or one region of it, as the items of an executor."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field

from glmc.errors import InternalError
from glmc.native.calls import Call, Lowered, Rows, Stride
from glmc.native.executor import Item
from glmc.native.lower import lowered
from glmc.program import Program

_LAYER = re.compile(r"^cache:\w+\.(\d+)$")


@dataclass
class Flat:
    """Items, the width of each register, and the registers of named values. sums: (items before it, register) of each sum over
    ranks. gathers: whether the logits are a part of each rank's."""

    items: list[Item] = field(default_factory=list)
    widths: dict[int, int] = field(default_factory=dict)
    values: dict[str, int] = field(default_factory=dict)
    sums: list[tuple[int, int]] = field(default_factory=list)
    gathers: bool = False

    def new(self, width: int) -> int:
        self.widths[len(self.widths)] = width
        return len(self.widths) - 1


def whole(program: Program) -> Flat:
    """All steps of a program one after another; values: rows that the program is given too, "input:NAME". Raises Refused,
    InternalError."""
    found = {name: lowered(region) for name, region in program.regions.items()}
    flat = Flat()
    logits = program.logits
    for step in program.steps:
        if step.moves:
            (before,), (after,) = step.inputs, step.outputs
            if step.region == "all_reduce":
                flat.sums.append((len(flat.items), flat.values[before]))
            elif step.region != "all_gather" or after != logits or flat.gathers:
                raise InternalError("the native engine does not know this step between regions", field=step.region)
            else:
                logits, flat.gathers = before, True
            flat.values[after] = flat.values[before]
            continue
        piece = found[step.region]
        names = dict(zip((name for name, _, _ in piece.region.inputs), step.inputs, strict=True))
        for local, reg in piece.inputs.items():
            if names[local].startswith("input:") and names[local] not in flat.values:
                flat.values[names[local]] = flat.new(piece.widths[reg])
        registers = {reg: flat.values[names[local]] for local, reg in piece.inputs.items()}
        last = step.rows == "last"
        if last:
            for reg in piece.inputs.values():
                chosen = flat.new(piece.widths[reg])
                pick = Call("wanted_rows", [piece.widths[reg], Stride(0), Stride(1)],
                            [Rows(0, 0, piece.widths[reg]), Rows(1, 0, piece.widths[reg])], writes=(1,))
                flat.items.append(Item(pick, {0: registers[reg], 1: chosen}, {}, wanted=True, region=step.region))
                registers[reg] = chosen
        _add(flat, piece, registers, names, last)
        flat.values |= {name: registers[reg] for name, reg in zip(step.outputs, piece.outputs, strict=True) if reg is not None}
    end = flat.items[-1]
    if end.call.kernel != "linear" or [end.registers[r] for r in end.call.writes] != [flat.values.get(logits)]:
        raise InternalError("the program does not end with the product that makes the logits", found=end.call.kernel)
    flat.items[-1] = dataclasses.replace(end, logits=True)
    return flat


def alone(piece: Lowered) -> Flat:
    """One region by itself; values: its inputs by name, its results as "0", "1", ..."""
    flat = Flat()
    registers = {reg: flat.new(piece.widths[reg]) for reg in piece.inputs.values()}
    names = {name: name if role == "weight" else f"cache:{name}.0" if role == "cache" else name
             for name, role, _ in piece.region.inputs}
    _add(flat, piece, registers, names, False)
    flat.values = {local: registers[reg] for local, reg in piece.inputs.items()}
    flat.values |= {str(i): registers[reg] for i, reg in enumerate(piece.outputs) if reg is not None}
    return flat


def _add(flat: Flat, piece: Lowered, registers: dict[int, int], names: dict[str, str], wanted: bool) -> None:
    weights = {local: name.removeprefix("weight:") for local, name in names.items()}
    layers = {int(m[1]) for name in names.values() if (m := _LAYER.match(name))}
    if len(layers) > 1:
        raise InternalError("a region reads the caches of two layers", field=piece.region.name)
    for call in piece.calls:
        for reg in call.writes:
            if reg not in registers:
                registers[reg] = flat.new(piece.widths[reg])
        flat.items.append(Item(call, registers, weights, next(iter(layers), None), wanted, region=piece.region.name))
