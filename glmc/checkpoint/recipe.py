"""A recipe says how one parameter is made from checkpoint tensors: a small tree, read without running anything.

Memory: `build` allocates the result once and lets every part be read straight into its place in it; besides the result
at most one part is held, and only where its place is not contiguous or has another dtype. `pieces` holds less of what is large.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glmc.checkpoint.safetensors_header import TensorInfo
from glmc.checkpoint.tensor_bytes import BITS, torch_dtype
from glmc.errors import WeightMismatch, WeightMissing

if TYPE_CHECKING:
    import torch

    from glmc.checkpoint.folder import Checkpoint

Tensors = Mapping[str, TensorInfo]
FLOATS = ("BF16", "F16", "F32")
SLAB = 1 << 27
"""Bytes of a large tensor that are read at once."""


class Recipe(ABC):
    """Base of the steps. `shape` and `dtype` look only at headers; `build` and `fill` read."""

    def names(self) -> list[str]:
        """The checkpoint tensors that are read, each once, in the order of reading."""
        return list(dict.fromkeys(name for part in self.parts() for name in part.names()))

    @abstractmethod
    def parts(self) -> tuple[Recipe, ...]:
        """The steps directly below."""

    def leaves(self) -> list[Recipe]:
        """The steps that read: their dtypes are the file's, which a cast would hide."""
        return [leaf for part in self.parts() for leaf in part.leaves()] or [self]

    @abstractmethod
    def shape(self, tensors: Tensors) -> tuple[int, ...]:
        """The result's shape. Raises WeightMissing, or WeightMismatch when the parts do not fit together."""

    def dtype(self, tensors: Tensors) -> str:
        """The result's dtype as safetensors names it. Raises WeightMissing or WeightMismatch."""
        return self.parts()[0].dtype(tensors)

    @abstractmethod
    def fill(self, checkpoint: Checkpoint, out: torch.Tensor) -> None:
        """Write the result into `out`, which has the result's shape; another dtype of `out` converts on the way."""

    def pieces(self, checkpoint: Checkpoint, out: tuple[int, ...], dtype: torch.dtype) -> Iterator[tuple[int, torch.Tensor]]:
        """The result, of shape `out` in `dtype`, as one piece or cut along dim 0: (first row, piece), in order."""
        import torch

        made = torch.empty(out, dtype=dtype)
        self.fill(checkpoint, made)
        yield 0, made

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The tree as plain data; each step names itself under "step"."""

    def build(self, checkpoint: Checkpoint) -> torch.Tensor:
        """The parameter, contiguous, in private memory. Raises what `Checkpoint.read` and `shape` raise."""
        import torch

        tensors = checkpoint.tensors
        out = torch.empty(self.shape(tensors), dtype=torch_dtype(self.dtype(tensors)))
        self.fill(checkpoint, out)
        return out


def _mismatch(what: str, recipe: Recipe, expected: Any, found: Any) -> WeightMismatch:
    names = recipe.names()
    return WeightMismatch(what, field=names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else ""),
                          expected=expected, found=found)


def _dim(recipe: Recipe, dim: int, rank: int) -> None:
    if not 0 <= dim < rank:
        raise _mismatch("the recipe names a dim that the tensor does not have", recipe, f"0 to {rank - 1}", dim)


@dataclass(frozen=True)
class Take(Recipe):
    """The checkpoint tensor `name` as it is."""

    name: str

    def names(self) -> list[str]:
        return [self.name]

    def parts(self) -> tuple[Recipe, ...]:
        return ()

    def _info(self, tensors: Tensors) -> TensorInfo:
        if self.name not in tensors:
            raise WeightMissing("the checkpoint has no such tensor", field=self.name)
        return tensors[self.name]

    def shape(self, tensors: Tensors) -> tuple[int, ...]:
        return self._info(tensors).shape

    def dtype(self, tensors: Tensors) -> str:
        return self._info(tensors).dtype

    def fill(self, checkpoint: Checkpoint, out: torch.Tensor) -> None:
        if out.is_contiguous() and out.dtype == torch_dtype(self.dtype(checkpoint.tensors)):
            checkpoint.read_rows(self.name, out, 0)
        else:
            out.copy_(checkpoint.read(self.name))

    def pieces(self, checkpoint: Checkpoint, out: tuple[int, ...], dtype: torch.dtype) -> Iterator[tuple[int, torch.Tensor]]:
        import torch

        info = self._info(checkpoint.tensors)
        if info.nbytes <= SLAB:
            yield from super().pieces(checkpoint, out, dtype)
            return
        each = max(1, out[0] * SLAB // info.nbytes)
        for first in range(0, out[0], each):
            made = torch.empty((min(each, out[0] - first), *out[1:]), dtype=torch_dtype(info.dtype))
            checkpoint.read_rows(self.name, made, first)
            yield first, made.to(dtype)

    def to_json(self) -> dict[str, Any]:
        return {"step": "take", "name": self.name}


@dataclass(frozen=True)
class Cast(Recipe):
    """The source rounded to `target`, a dtype as safetensors names it."""

    source: Recipe
    target: str

    def __post_init__(self) -> None:
        if self.target not in BITS:
            raise WeightMismatch("a recipe casts to an unknown dtype", expected=sorted(BITS), found=self.target)

    def parts(self) -> tuple[Recipe, ...]:
        return (self.source,)

    def shape(self, tensors: Tensors) -> tuple[int, ...]:
        return self.source.shape(tensors)

    def dtype(self, tensors: Tensors) -> str:
        self.source.dtype(tensors)
        return self.target

    def fill(self, checkpoint: Checkpoint, out: torch.Tensor) -> None:
        if out.dtype == torch_dtype(self.target):
            self.source.fill(checkpoint, out)
        else:
            out.copy_(self.build(checkpoint))  # round to `target` first, as written

    def to_json(self) -> dict[str, Any]:
        return {"step": "cast", "dtype": self.target, "source": self.source.to_json()}


@dataclass(frozen=True)
class _Joined(Recipe):
    """Base of the steps with several sources, equal in dtype."""

    sources: tuple[Recipe, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", tuple(self.sources))
        if not self.sources:
            raise WeightMismatch(f"a recipe has nothing to {type(self).__name__.lower()}", expected="at least one part")

    def parts(self) -> tuple[Recipe, ...]:
        return self.sources

    def dtype(self, tensors: Tensors) -> str:
        found = sorted({part.dtype(tensors) for part in self.sources})
        if len(found) != 1:
            raise _mismatch("the parts differ in dtype", self, "one dtype", found)
        return found[0]


@dataclass(frozen=True)
class Concatenate(_Joined):
    """The parts one after another along `dim`; their other dims and their dtypes are equal."""

    dim: int = 0

    def shape(self, tensors: Tensors) -> tuple[int, ...]:
        shapes = [part.shape(tensors) for part in self.sources]
        _dim(self, self.dim, len(shapes[0]))
        rest = {(*shape[:self.dim], None, *shape[self.dim + 1:]) for shape in shapes}
        if len(rest) != 1 or len({len(shape) for shape in shapes}) != 1:
            raise _mismatch(f"the parts cannot be concatenated along dim {self.dim}", self, "equal other dims",
                            sorted(set(shapes)))
        return (*shapes[0][:self.dim], sum(shape[self.dim] for shape in shapes), *shapes[0][self.dim + 1:])

    def fill(self, checkpoint: Checkpoint, out: torch.Tensor) -> None:
        at = 0
        for part in self.sources:
            length = part.shape(checkpoint.tensors)[self.dim]
            part.fill(checkpoint, out.narrow(self.dim, at, length))
            at += length

    def to_json(self) -> dict[str, Any]:
        return {"step": "concatenate", "dim": self.dim, "parts": [part.to_json() for part in self.sources]}


@dataclass(frozen=True)
class Stack(_Joined):
    """The parts, equal in shape and dtype, along a new first dim."""

    def shape(self, tensors: Tensors) -> tuple[int, ...]:
        shapes = sorted({part.shape(tensors) for part in self.sources})
        if len(shapes) != 1:
            raise _mismatch("the parts differ in shape", self, "one shape", shapes)
        return (len(self.sources), *shapes[0])

    def fill(self, checkpoint: Checkpoint, out: torch.Tensor) -> None:
        for place, part in zip(out, self.sources, strict=True):
            part.fill(checkpoint, place)

    def pieces(self, checkpoint: Checkpoint, out: tuple[int, ...], dtype: torch.dtype) -> Iterator[tuple[int, torch.Tensor]]:
        for number, part in enumerate(self.sources):
            for _, made in Recipe.pieces(part, checkpoint, out[1:], dtype):
                yield number, made.unsqueeze(0)

    def to_json(self) -> dict[str, Any]:
        return {"step": "stack", "parts": [part.to_json() for part in self.sources]}


@dataclass(frozen=True)
class Slice(Recipe):
    """Indices `start` to `stop` (not included) of the source along `dim`."""

    source: Recipe
    dim: int
    start: int
    stop: int

    def parts(self) -> tuple[Recipe, ...]:
        return (self.source,)

    def shape(self, tensors: Tensors) -> tuple[int, ...]:
        shape = self.source.shape(tensors)
        _dim(self, self.dim, len(shape))
        if not 0 <= self.start <= self.stop <= shape[self.dim]:
            raise _mismatch(f"the slice leaves dim {self.dim}", self, f"within 0:{shape[self.dim]}",
                            f"{self.start}:{self.stop}")
        return (*shape[:self.dim], self.stop - self.start, *shape[self.dim + 1:])

    def fill(self, checkpoint: Checkpoint, out: torch.Tensor) -> None:
        import torch

        if self.dim or not isinstance(self.source, Take):
            out.copy_(self.source.build(checkpoint).narrow(self.dim, self.start, self.stop - self.start))
            return
        # Rows of one tensor lie together in the file, so that only they are read.
        dtype = torch_dtype(self.dtype(checkpoint.tensors))
        place = out if out.is_contiguous() and out.dtype == dtype else torch.empty(out.shape, dtype=dtype)
        checkpoint.read_rows(self.source.name, place, self.start)
        if place is not out:
            out.copy_(place)

    def to_json(self) -> dict[str, Any]:
        return {"step": "slice", "dim": self.dim, "start": self.start, "stop": self.stop,
                "source": self.source.to_json()}


@dataclass(frozen=True)
class Transpose(Recipe):
    """The source with two dims exchanged."""

    source: Recipe
    dim0: int
    dim1: int

    def parts(self) -> tuple[Recipe, ...]:
        return (self.source,)

    def shape(self, tensors: Tensors) -> tuple[int, ...]:
        shape = list(self.source.shape(tensors))
        for dim in (self.dim0, self.dim1):
            _dim(self, dim, len(shape))
        shape[self.dim0], shape[self.dim1] = shape[self.dim1], shape[self.dim0]
        return tuple(shape)

    def fill(self, checkpoint: Checkpoint, out: torch.Tensor) -> None:
        self.source.fill(checkpoint, out.transpose(self.dim0, self.dim1))

    def to_json(self) -> dict[str, Any]:
        return {"step": "transpose", "dim0": self.dim0, "dim1": self.dim1, "source": self.source.to_json()}
