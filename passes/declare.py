"""The vocabulary of a fusion: a reference written once, from which pattern, oracle and signature derive.

A reference is a plain torch function. Each tensor parameter is annotated with its dims ("B S H D"; "..." stands for any
leading dims); keyword-only parameters are scalars, recovered from the model. Samples give the dims and scalars at which the
reference is traced twice: a literal that differs between the traces is a hole, one that agrees is a fact. Where some
sizes make the tracer write other steps (a slice that takes everything is none), a further pair of samples shows them.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from glmc.errors import InternalError, UnknownName

FOLDER = Path(__file__).parent / "fusions"


@dataclass(frozen=True)
class Relation:
    """A condition of meaning between dims, as data so that a refusal can print it: `text` is shown, `holds` decides."""

    text: str
    holds: Callable[[dict[str, int]], bool]


def even(name: str) -> Relation:
    """The dim is even."""
    return Relation(f"{name} is even", lambda d: d[name] % 2 == 0)


def at_most(name: str, bound: str) -> Relation:
    """One dim is at most another."""
    return Relation(f"{name} <= {bound}", lambda d: d[name] <= d[bound])


@dataclass(frozen=True)
class Fusion:
    """A piece of maths declared once. `also` holds other spellings of the same numbers, tested equal before they match."""

    reference: Callable
    samples: tuple[dict[str, Any], ...]
    where: tuple[Relation, ...] = ()
    also: tuple[Callable, ...] = ()
    name: str = field(init=False)
    tensors: dict[str, tuple[str, ...]] = field(init=False)
    scalars: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        parameters = inspect.signature(self.reference, eval_str=False).parameters.values()
        tensors = {p.name: tuple(p.annotation.strip("'\"").split())
                   for p in parameters if p.kind is not p.KEYWORD_ONLY}
        object.__setattr__(self, "tensors", tensors)
        object.__setattr__(self, "scalars", tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY))
        object.__setattr__(self, "name", self.reference.__module__.rsplit(".", 1)[1])

    @property
    def spellings(self) -> tuple[Callable, ...]:
        """The reference, then its other spellings."""
        return (self.reference, *self.also)

    def sample(self, which: int, dtype: torch.dtype, device: str = "meta") -> tuple[list[torch.Tensor], dict[str, Any]]:
        """Tensors (uninitialised on meta, normal elsewhere) and scalars of sample `which`."""
        values = self.samples[which]
        leading = values.get("...", (2, 3))
        shapes = [[n for d in dims for n in (leading if d == "..." else (int(d) if d.isdigit() else values[d],))]
                  for dims in self.tensors.values()]
        make = torch.empty if device == "meta" else torch.randn
        return [make(s, dtype=dtype, device=device) for s in shapes], {k: values[k] for k in self.scalars}

    def dims(self, shapes: list[tuple]) -> dict[str, Any] | str:
        """Bind the dims' letters to the sizes in `shapes`; a sentence says which does not fit."""
        bound: dict[str, Any] = {}
        for (name, dims), shape in zip(self.tensors.items(), shapes, strict=True):
            tail = [d for d in dims if d != "..."]
            if len(shape) < len(tail) or ("..." not in dims and len(shape) != len(tail)):
                return f"{name} has {len(shape)} dims, the reference wants {' '.join(dims)}"
            for letter, size in zip(tail, shape[len(shape) - len(tail):], strict=True):
                if letter.isdigit():
                    if size != int(letter):
                        return f"{name}: dim {size} should be {letter}"
                elif bound.setdefault(letter, size) != size:
                    return f"{name}: dim {letter} is {size}, elsewhere {bound[letter]}"
        return bound


def names() -> list[str]:
    """Every declared fusion, by file."""
    return sorted(p.stem for p in FOLDER.glob("*.py") if not p.stem.startswith("_"))


def load(name: str) -> Fusion:
    """The fusion declared in `passes/fusions/NAME.py`, under the variable `fusion`."""
    if name not in names():
        raise UnknownName("no fusion has this name", field=name, expected=", ".join(names()))
    declared = importlib.import_module(f"glmc.passes.fusions.{name}").fusion
    if declared.name != name:
        raise InternalError("a fusion's reference must live in the file of its name", field=name, found=declared.name)
    return declared


def all_fusions() -> list[Fusion]:
    """Every declared fusion, ordered by name."""
    return [load(name) for name in names()]
