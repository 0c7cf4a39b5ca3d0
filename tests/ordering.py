"""Interpreted Triton kernels with the programs of a grid in any order, and what each program reads and writes.

The interpreter runs one program after the other; a GPU runs them at once. So a launch is faulty where two programs write one
address, where one reads what another writes, and where a program reads what it wrote itself, of which other threads may have
written the half. What is read and written atomically is the kernel's own affair: its bits must not depend on the order.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from triton.runtime import interpreter

from glmc.kernels import triton

Place = tuple[int, int, int]
ORDERS: dict[str, Callable[[list[Place]], list[Place]]] = {
    "forward": list, "backward": lambda places: places[::-1],
    "shuffled": lambda places: random.Random(len(places)).sample(places, len(places))}


@dataclass
class Seen:
    """Kernel -> the most programs of a launch of it; and the faults found, each in a sentence."""

    programs: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


class _Launch:
    """What the programs of one launch read and wrote: addresses, of whole elements, and the number of the program of each."""

    def __init__(self, name: str) -> None:
        self.name, self.program, self.count = name, -1, 1
        self.read: list[tuple[int, np.ndarray]] = []
        self.written: list[tuple[int, np.ndarray]] = []

    def loads(self, places: np.ndarray) -> None:
        self.read.append((self.program, places))

    def stores(self, places: np.ndarray) -> None:
        self.written.append((self.program, places))

    def faults(self) -> list[str]:
        read, reader = _flat(self.read)
        written, writer = _flat(self.written)
        order = np.lexsort((writer, written))
        written, writer = written[order], writer[order]
        found = []
        if bool(((written[1:] == written[:-1]) & (writer[1:] != writer[:-1])).any()):
            found.append("two programs write one address")
        if len(written):
            at = np.searchsorted(written, read).clip(max=len(written) - 1)
            both = written[at] == read
            if bool((writer[at] != reader)[both].any()):
                found.append("a program reads what another writes")
        return [f"{self.name}: {fault}" for fault in found]


def _flat(accesses: list[tuple[int, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """All addresses, and the program of each."""
    places = [p for _, p in accesses] or [np.empty(0, np.uint64)]
    return np.concatenate(places), np.repeat([n for n, _ in accesses] or [0], [len(p) for p in places])


def watch(monkeypatch, order: str = "forward") -> Seen:
    """From now on launches run their programs in an order of ORDERS and are looked at."""
    seen, builder, interpret = Seen(), interpreter.interpreter_builder, triton._interpret
    load, store, dims, index = (getattr(builder, name) for name in (
        "create_masked_load", "create_masked_store", "set_grid_dim", "set_grid_idx"))
    launch, places = _Launch(""), iter(())

    def started(kernel, grid, arguments, constants):
        nonlocal launch
        launch = _Launch(kernel.fn.__name__)
        interpret(kernel, grid, arguments, constants)
        seen.programs[launch.name] = max(seen.programs.get(launch.name, 0), launch.count)
        seen.faults += launch.faults()

    def begun(*sizes):
        nonlocal places
        dims(*sizes)
        every = ORDERS[order](list(product(*map(range, sizes))))
        launch.count, places = len(every), iter(every)

    def turned(*_):
        launch.program += 1
        index(*next(places))

    def touched(pointers, mask):
        return pointers.data[mask.data.astype(bool)].ravel()

    def loaded(ptrs, mask, *rest, **more):
        places = touched(ptrs, mask)
        launch.loads(places)
        own = [p for n, p in launch.written if n == launch.program]
        if own and bool(np.isin(places, np.concatenate(own)).any()):
            seen.faults.append(f"{launch.name}: a program reads what it wrote")
        return load(ptrs, mask, *rest, **more)

    def stored(ptrs, value, mask, *rest, **more):
        places = touched(ptrs, mask)
        launch.stores(places)
        if len(np.unique(places)) < len(places):
            seen.faults.append(f"{launch.name}: a program writes one address twice in one store")
        return store(ptrs, value, mask, *rest, **more)

    for name, changed in (("create_masked_load", loaded), ("create_masked_store", stored), ("set_grid_dim", begun),
                          ("set_grid_idx", turned)):
        monkeypatch.setattr(builder, name, changed)
    monkeypatch.setattr(triton, "_interpret", started)
    return seen
