"""One folder an op; in it one file a kind of machine: `cpu.py`, `triton.py`, `npu.py`. A file offers

run(...)        the op, with its reference's signature
accepts(site)   None, or the reason why this machine's kernel cannot take the site (dtype and shape of its tensors, scalars)

Which file is loaded is decided by path. An op without a file for a machine is refused there, with that reason.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from glmc.errors import UnknownName, UnsupportedTarget

FOLDER = Path(__file__).parent


class Op:
    """A fused op as the target of a graph node. It is a name; machines give it code."""

    def __init__(self, name: str) -> None:
        self.name = self.__name__ = self.__qualname__ = name
        self.__module__ = "glmc"

    def __repr__(self) -> str:
        return f"glmc.{self.name}"

    def __call__(self, *args: Any, **scalars: Any) -> Any:
        """The op's plain CPU code: graphs that hold fused ops stay runnable."""
        return load(self.name, "cpu").run(*args, **scalars)


def opaque(name: str, schema: str) -> Callable[[Callable], Callable]:
    """Register a CPU function as the torch op `glmc::NAME`, which compilers call but do not look into.

    schema: its signature, "(Tensor x) -> Tensor". The plain library interface, since `torch.library.custom_op` imports
    dynamo at its first call: a second of a loaded artefact's first token.
    """
    torch.library.define(f"glmc::{name}", schema)

    def register(function: Callable) -> Callable:
        torch.library.impl(f"glmc::{name}", "CPU", function)
        return function

    return register


_OPS: dict[str, Op] = {}


def names() -> list[str]:
    """Every op that has a folder."""
    return sorted(p.name for p in FOLDER.iterdir() if p.is_dir() and not p.name.startswith("_"))


def op(name: str) -> Op:
    """The op called `name`: always the same object."""
    if name not in _OPS:
        if not (FOLDER / name).is_dir():
            raise UnknownName("no kernel folder has this name", field=name, expected=", ".join(names()))
        _OPS[name] = Op(name)
    return _OPS[name]


def has(name: str, machine: str) -> bool:
    """Whether op `name` has code for `machine` ("cpu", "triton", "npu")."""
    return (FOLDER / name / f"{machine}.py").is_file()


def load(name: str, machine: str) -> ModuleType:
    """The module `glmc.kernels.NAME.MACHINE`. Raises UnsupportedTarget where the language it is written in is missing."""
    if not has(name, machine):
        raise UnknownName(f"the op has no code for {machine}", field=name)
    try:
        return importlib.import_module(f"glmc.kernels.{name}.{machine}")
    except ModuleNotFoundError as fault:
        if fault.name != machine:
            raise
        raise UnsupportedTarget("the kernels of this machine are written in a language that is not installed",
                                field=machine, hint=f"pip install {machine}") from fault


@contextlib.contextmanager
def holding(variable: ContextVar, value: Any) -> Iterator[None]:
    """`variable` has this value meanwhile."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def checking(machine: str) -> AbstractContextManager:
    """Meanwhile the kernels of a machine that is not here run on CPU tensors: interpreted, emulated, or as they are."""
    if machine == "triton":
        from glmc.kernels import triton

        return triton.interpreted()
    if machine == "npu":
        from glmc.kernels import npu

        return npu.emulated()
    return contextlib.nullcontext()


def differ(site: dict[str, Any], first: str, second: str) -> str | None:
    """A refusal where two tensors of a site do not have one shape."""
    one, other = (f"[{', '.join(map(str, site[name][1]))}]" for name in (first, second))
    return None if one == other else f"{first} {one} and {second} {other} differ in shape"


def too_wide(what: str, size: int, most: int) -> str | None:
    """A refusal where one program of a kernel cannot hold so much: `what` says of what."""
    return None if size <= most else f"{what} of {size} elements does not fit one program; at most {most}"
