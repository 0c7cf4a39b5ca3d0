"""What a region becomes for the native library: calls of its kernels over registers of rows, and how each weight is wanted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from glmc.program import Region, Spec


class Refused(Exception):
    """The text holds something that no native kernel does. Its words are the reason."""


@dataclass(frozen=True)
class Rows:
    """Columns `offset` to `offset + width` of register `reg`. swapped: heads stand before tokens in the text's shape."""

    reg: int
    offset: int
    width: int
    swapped: bool = False


@dataclass(frozen=True)
class Heads:
    """`count` heads of a register's rows: head h's are columns `offset + h * step` to `offset + h * step + width`."""

    reg: int
    count: int
    step: int
    offset: int
    width: int


@dataclass(frozen=True)
class Weight:
    """A weight as an operand. wide: the text widens it to float32 first."""

    name: str
    spec: Spec
    wide: bool = False


@dataclass(frozen=True)
class State:
    """One of a layer's caches."""

    name: str
    spec: Spec
    swapped: bool = False


@dataclass(frozen=True)
class Index:
    """Whole numbers that the step itself knows: ids, positions, slots, rows. `mask`: slots up to the position."""

    what: str


@dataclass(frozen=True)
class New:
    """Keys or values of the new tokens, which go to the cache with the call that makes them."""

    call: int
    kind: str
    swapped: bool = False


@dataclass(frozen=True)
class Stride:
    """In a call's sizes: the floats from one row of the register to the next."""

    reg: int


@dataclass(frozen=True)
class Form:
    """In a call's sizes: the number of the form in which a weight is kept."""

    name: str


@dataclass(frozen=True)
class Layout:
    """In a call's sizes: the cache's form, its slots, or bytes of a sequence, or of a head's keys, values or index."""

    what: str


@dataclass(frozen=True)
class Slots:
    """In a call's sizes: so many bytes for each of the step's slots, of which there are as many as the most tokens."""

    each: int


@dataclass
class Call:
    """One kernel: sizes, scalars and operands, as the head of its file in glmc/kernels/ lists them. per: tokens a row."""

    kernel: str
    n: list[Any]
    p: list[Any]
    f: list[float] = field(default_factory=list)
    writes: tuple[int, ...] = ()
    per: int = 1


@dataclass(frozen=True)
class Need:
    """How a weight is wanted. kind: matrix [N, K], experts [E, N, K], latent (see split.py), table (rows), vector (float32).
    halves: rows of two halves that lie beside each other in every panel. split: a latent's heads, plain and value channels.
    last: of a kernel [N, C, ...], a matrix whose inputs are places of C channels; else channels of places."""

    kind: str
    halves: bool = False
    wide: bool = False
    split: tuple[int, int, int] | None = None
    last: bool = False


@dataclass
class Lowered:
    """A region's calls in order. widths: register -> floats a row. inputs: the region's input -> register. outputs: a register
    for each result that is rows, else None (the mask)."""

    region: Region
    calls: list[Call]
    widths: dict[int, int]
    inputs: dict[str, int]
    outputs: tuple[int | None, ...]
    needs: dict[str, Need]

    def text(self) -> list[str]:
        """The calls, a line each, for people."""
        def word(o: Any) -> str:
            match o:
                case Rows(reg, offset, width):
                    return f"r{reg}" + (f"[{offset}:{offset + width}]" if width != self.widths[reg] else "")
                case Weight(name) | State(name):
                    return name
            return "-"
        made = [", ".join(f"r{r}" for r in c.writes) for c in self.calls]
        return [f"{f'{to} = ' if to else ''}{c.kernel}({', '.join(map(word, c.p))})"
                for to, c in zip(made, self.calls, strict=True)]
