"""The ranks that run a program together, as the loop over its steps sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch

MAIN = 0
"""The rank that owns every broadcast: the world's, whatever other groups there are."""


class Ranks(Protocol):
    """A group of processes. Every rank must call the same methods in the same order; each raises RankError."""

    rank: int
    size: int

    def enter(self, stage: str) -> None:
        """Begin a stage: at most 40 bytes of text, the same on every rank."""
        ...

    def same(self, stage: str, *tensors: torch.Tensor) -> None:
        """Begin a stage, and refuse to go on unless all ranks bring the same tensors, bit for bit."""
        ...

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of all ranks' tensors, of one shape and dtype, with the same bits on each; may be `tensor` itself."""
        ...

    def all_gather(self, tensor: torch.Tensor, dim: int, alike: int = 0) -> torch.Tensor:
        """All ranks' tensors, of one shape and dtype, one after another along `dim`.

        alike: so many first entries along `dim` are the same on all ranks, and come once.
        """
        ...

    def main_then_broadcast(self, stage: str, run: Callable[[], Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """What `run` returns on rank MAIN, which alone calls it, on every rank; what it raises is raised on every rank."""
        ...


class Alone:
    """One rank: nothing moves."""

    rank, size = MAIN, 1

    def enter(self, stage: str) -> None:
        """Nothing."""

    def same(self, stage: str, *tensors: torch.Tensor) -> None:
        """Nothing: one rank agrees with itself."""

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor`."""
        return tensor

    def all_gather(self, tensor: torch.Tensor, dim: int, alike: int = 0) -> torch.Tensor:
        """`tensor`."""
        return tensor

    def main_then_broadcast(self, stage: str, run: Callable[[], Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """What `run` returns."""
        return dict(run())
