"""The vocabulary of a fusion: a reference written once, from which pattern, oracle and signature derive.

A reference is a plain torch function. Each tensor parameter is annotated with its dims ("B S H D"; "..." stands for any
leading dims), after a dtype where it does not follow the graph's ("float32 n"; "wide ... n": the graph's or float32) and
before a bound on its integers ("int64 T K < E"). A tensor or scalar with the default None may be absent. Keyword-only
parameters are scalars. Samples give dims and scalars in pairs: the reference is traced at both, and a literal that differs
is a hole, one that agrees a fact. A pair is a form: what is None in it is absent, a scalar that both share is given by it.
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
from glmc.kernels.grouped_mm import cpu as _grouped_mm  # noqa: F401  references call these as torch.ops.glmc.NAME
from glmc.kernels.pick_lanes import cpu as _pick_lanes  # noqa: F401

FOLDER = Path(__file__).parent / "fusions"
_DTYPES = ("wide", "float32", "int64", "int32", "bool")


@dataclass(frozen=True)
class Relation:
    """A condition of meaning between dims, as data so that a refusal can print it: `text` is shown, `holds` decides."""

    text: str
    holds: Callable[[dict[str, Any]], bool]


def at_most(name: str, bound: str, times: int = 1) -> Relation:
    """`times` the one dim is at most another."""
    return Relation(f"{times if times > 1 else ''}{name} <= {bound}", lambda d: times * d[name] <= d[bound])


@dataclass(frozen=True)
class Tensor:
    """A tensor parameter, read from its annotation. `below` is the dim that bounds its integers."""

    name: str
    dims: tuple[str, ...]
    dtype: str | None
    below: str | None
    optional: bool

    @staticmethod
    def read(parameter: inspect.Parameter) -> Tensor:
        words, _, below = str(parameter.annotation).strip("'\"").partition("<")
        dims = tuple(words.split())
        dtype = dims[0] if dims and dims[0] in _DTYPES else None
        return Tensor(parameter.name, dims[1:] if dtype else dims, dtype, below.strip() or None,
                      parameter.default is None)

    def kind(self, graph: torch.dtype, wide: bool) -> torch.dtype:
        """The dtype in a graph of dtype `graph`; `wide` gives the tensors that may be float32 that dtype."""
        if self.dtype == "wide":
            return torch.float32 if wide else graph
        return getattr(torch, self.dtype) if self.dtype else graph


@dataclass(frozen=True)
class Maths:
    """A traceable function of tensors and scalars, with the samples that show what its literals depend on."""

    function: Callable
    samples: tuple[dict[str, Any], ...]
    tensors: dict[str, Tensor] = field(init=False)
    scalars: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        parameters = inspect.signature(self.function, eval_str=False).parameters.values()
        object.__setattr__(self, "tensors", {p.name: Tensor.read(p) for p in parameters if p.kind is not p.KEYWORD_ONLY})
        object.__setattr__(self, "scalars", tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY))

    @property
    def may_be_wide(self) -> bool:
        return any(t.dtype == "wide" for t in self.tensors.values())

    def present(self, which: int) -> tuple[str, ...]:
        """The tensors that sample `which` has."""
        values = self.samples[which]
        return tuple(n for n, t in self.tensors.items() if not (t.optional and values.get(n, "there") is None))

    def settings(self, which: int, dtype: torch.dtype) -> dict[str, Any]:
        """The scalars of sample `which`; one called `dtype` is the graph's own."""
        values = self.samples[which]
        return {k: dtype if k == "dtype" else values[k] for k in self.scalars}

    def shapes(self, which: int) -> dict[str, list[int]]:
        """The shape of each tensor that sample `which` has. A key of the sample that is a tensor's name overrides."""
        values = self.samples[which]
        leading = values.get("...", (2, 3))

        def size(dim: str) -> tuple[int, ...]:
            return tuple(leading) if dim == "..." else (int(dim) if dim.isdigit() else values[dim],)

        return {n: list(values[n]) if isinstance(values.get(n), (list, tuple)) else
                [s for d in self.tensors[n].dims for s in size(d)] for n in self.present(which)}

    def empty(self, which: int, dtype: torch.dtype, wide: bool = False) -> list[torch.Tensor]:
        """The tensors that sample `which` has, on the meta device."""
        return [torch.empty(shape, dtype=self.tensors[n].kind(dtype, wide), device="meta")
                for n, shape in self.shapes(which).items()]

    def random(self, which: int, dtype: torch.dtype, wide: bool = False, seed: int = 0) -> list[torch.Tensor]:
        """The same on the CPU: normal, or integers below their bound (small ones where they have none)."""
        generator = torch.Generator().manual_seed(seed)
        made = []
        for name, shape in self.shapes(which).items():
            tensor, kind = self.tensors[name], self.tensors[name].kind(dtype, wide)
            if kind.is_floating_point:
                made.append(torch.randn(shape, generator=generator, dtype=torch.float64).to(kind))
            else:
                high = 2 if kind is torch.bool else self.samples[which][tensor.below] if tensor.below else 5
                made.append(torch.randint(0, high, shape, generator=generator).to(kind))
        return made

    def bound(self, present: tuple[str, ...]) -> Callable:
        """The function of the present tensors alone; the absent ones are None."""

        def call(*tensors: torch.Tensor, **scalars: Any) -> Any:
            given = dict(zip(present, tensors, strict=True))
            return self.function(*(given.get(n) for n in self.tensors), **scalars)

        return call

    def dims(self, shapes: dict[str, tuple]) -> dict[str, Any] | str:
        """Bind the dims' letters to the sizes in `shapes`; a sentence says which does not fit."""
        known: dict[str, Any] = {}
        for name, shape in shapes.items():
            dims = self.tensors[name].dims
            tail = [d for d in dims if d != "..."]
            if len(shape) < len(tail) or ("..." not in dims and len(shape) != len(tail)):
                return f"{name} has {len(shape)} dims, the reference wants {' '.join(dims)}"
            for letter, size in zip(tail, shape[len(shape) - len(tail):], strict=True):
                if letter.isdigit():
                    if size != int(letter):
                        return f"{name}: dim {size} should be {letter}"
                elif known.setdefault(letter, size) != size:
                    return f"{name}: dim {letter} is {size}, elsewhere {known[letter]}"
        return known


@dataclass(frozen=True)
class Spelling:
    """Another author's spelling and the reference's own steps for the same bits. Both have the spelling's signature."""

    theirs: Maths
    ours: Callable


@dataclass(frozen=True)
class Fusion:
    """A piece of maths declared once. `also` holds other spellings, rewritten into the reference's before it is matched."""

    reference: Callable
    samples: tuple[dict[str, Any], ...]
    where: tuple[Relation, ...] = ()
    also: tuple[Spelling, ...] = ()
    name: str = field(init=False)
    maths: Maths = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "maths", Maths(self.reference, self.samples))
        object.__setattr__(self, "name", self.reference.__module__.rsplit(".", 1)[1])


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
