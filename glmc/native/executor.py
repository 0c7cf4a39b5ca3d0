"""Calls bound to memory, and the runs of them: one call into the library a step, whatever the model's depth."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from glmc import native
from glmc.errors import InternalError, StorageError, UsageError
from glmc.native.cache import PANEL, Cache
from glmc.native.calls import Call, Form, Layout, Rows, Slots, State, Stride, Weight
from glmc.native.keep import Keep

LINE = 16
"""Floats of a cache line."""


@dataclass(frozen=True)
class Item:
    """A call of one step. registers: the region's -> the program's. weights: the region's name -> the program's. layer: whose
    cache its states are. wanted: one row a token whose logits are wanted. logits: it writes them. region: whose call it is."""

    call: Call
    registers: Mapping[int, int]
    weights: Mapping[str, str]
    layer: int | None = None
    wanted: bool = False
    logits: bool = False
    region: str = ""


class Executor:
    """Runs steps of at most `tokens` tokens. widths: register -> floats a row. pinned: registers that keep memory of their own.
    sums: (items before it, register) of each sum over ranks, which `reduce` makes of float32 [tokens, width].

    weights and cache must live as long as this does, and do: they are held. Raises StorageError where memory is short.
    """

    def __init__(self, items: Sequence[Item], widths: Mapping[int, int], weights: Mapping[str, torch.Tensor],
                 kept: Mapping[str, Keep], cache: Cache | None, tokens: int, threads: int, pinned: Sequence[int] = (),
                 sums: Sequence[tuple[int, int]] = (), reduce: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        self.tokens, self.threads, self.items = tokens, threads, items
        self._sums, self._reduce = sums, reduce
        self._held = weights, cache
        self._strides = _strides(widths)
        self._widths = widths
        places, floats = _places(items, self._strides, pinned)
        self._arena = torch.zeros(floats * tokens + LINE)
        start = self._arena.data_ptr()
        self._at = {reg: start + 4 * tokens * at for reg, at in places.items()}
        self._offsets = {reg: tokens * at for reg, at in places.items()}
        self._library = native.library()
        program = (native.Instruction * len(items))()
        for made, item in zip(program, items, strict=True):
            self._bind(made, item, weights, kept, cache)
        self._process, self._turn = os.getpid(), threading.Lock()
        self._opened = self._library.glmc_open(program, len(items), tokens, threads)
        if not self._opened:
            raise StorageError("there is no memory for a step", expected=f"steps of {tokens} tokens on {threads} threads")

    def _bind(self, made: native.Instruction, item: Item, weights: Mapping[str, torch.Tensor], kept: Mapping[str, Keep],
              cache: Cache | None) -> None:
        call = item.call
        made.op = self._library.glmc_kernel(call.kernel.encode())
        made.rows = 1 if item.wanted else 0 if call.per == 1 else call.per
        if made.op < 0:
            raise InternalError("the native library has no such kernel", field=call.kernel,
                                hint="it was built from other sources")

        def size(n: object) -> int:
            match n:
                case Stride(reg):
                    register = item.registers[reg]
                    return self._widths[register] if item.logits and reg in call.writes else self._strides[register]
                case Form(name):
                    one = kept[item.weights[name]]
                    return one.number + (8 if call.kernel == "embedding" and one.packed else 0)
                case Slots(each):
                    if self.tokens % PANEL or self.tokens % call.per:
                        raise InternalError("slots of a step that are no whole panels", field=call.kernel, found=self.tokens)
                    return each * self.tokens
                case Layout(what):
                    return cache.sizes[what] if cache else 0
                case int():
                    return n
            raise InternalError("a call has a size that is none", field=call.kernel, found=n)

        def place(p: object) -> int | None:
            match p:
                case Rows(reg, offset):
                    return None if item.logits and reg in call.writes else self._at[item.registers[reg]] + 4 * offset
                case Weight(name):
                    return weights[item.weights[name]].data_ptr()
                case State(name):
                    return cache.place(item.layer or 0, name) if cache else None
                case None:
                    return None
            raise InternalError("a call has an operand that is none", field=call.kernel, found=p)

        for i, n in enumerate(call.n):
            made.n[i] = size(n)
        for i, p in enumerate(call.p):
            made.p[i] = place(p)
        for i, f in enumerate(call.f):
            made.f[i] = f

    def rows(self, reg: int, count: int) -> torch.Tensor:
        """A view of the first `count` rows of a register that is pinned, or that no call writes: float32 [count, width]."""
        return self._arena.as_strided((count, self._widths[reg]), (self._strides[reg], 1), self._offsets[reg])

    def run(self, ids: torch.Tensor, positions: torch.Tensor, sequences: torch.Tensor, which: torch.Tensor,
            logits: torch.Tensor | None, turns: torch.Tensor | None = None, media: torch.Tensor | None = None,
            features: torch.Tensor | None = None, ends: torch.Tensor | None = None, grid: torch.Tensor | None = None) -> None:
        """One step. ids, positions, sequences int64 [tokens]; which int64 [wanted], in order; logits float32 [wanted, V].

        turns: int64 [axes, tokens], what RoPE turns by where a model has several axes; without it `positions`, the slots, on
        all of them. media: int64 [tokens], the row of `features` float32 [M, hidden] that a token takes, negative for none;
        both or neither. ends, grid: int64 [images + 1] and [images, 3] of a vision tower, whose tokens are patches.

        Nothing is checked here: ids, positions and sequences must lie inside the vocabulary and the cache, media inside the
        features, and all tensors be contiguous. Calls from several threads take turns. Raises UsageError in a forked process,
        which does not have the library's threads.
        """
        if os.getpid() != self._process:
            raise UsageError("the model was loaded before this process was forked", field="process",
                             hint="load it in the process that uses it")
        optional = [None if t is None else t.data_ptr() for t in (logits, turns, media, features)]
        step = native.Step(len(ids), ids.data_ptr(), positions.data_ptr(), sequences.data_ptr(), len(which), which.data_ptr(),
                           *optional, 0 if ends is None else len(ends) - 1, *(None if t is None else t.data_ptr()
                                                                            for t in (ends, grid)))
        with self._turn:
            if self._reduce is None or not self._sums:
                self._library.glmc_run(self._opened, ctypes.byref(step))
                return
            begin = 0
            for end, reg in self._sums:
                self._library.glmc_run_part(self._opened, ctypes.byref(step), begin, end)
                rows, begin = self.rows(reg, len(ids)), end
                rows.copy_(self._reduce(rows.contiguous()))
            self._library.glmc_run_part(self._opened, ctypes.byref(step), begin, len(self.items))

    def profile(self) -> torch.Tensor:
        """float64 [items]: from now on the seconds of each item, added up over the steps."""
        self._seconds = torch.zeros(len(self.items), dtype=torch.float64)
        self._library.glmc_profile(self._opened, self._seconds.data_ptr())
        return self._seconds

    def __del__(self, process: Callable[[], int] = os.getpid) -> None:  # bound now: modules are gone when Python ends
        if (opened := getattr(self, "_opened", None)) and process() == self._process:
            self._library.glmc_close(opened)


def _strides(widths: Mapping[int, int]) -> dict[int, int]:
    """Floats from one row of a register to the next: an odd number of lines."""
    return {reg: (-(-width // LINE) | 1) * LINE for reg, width in widths.items()}


def token_bytes(items: Sequence[Item], widths: Mapping[int, int], kept: Mapping[str, Keep]) -> int:
    """Memory of a step for each of its tokens: activations, and rows made ready for the product with the most inputs."""
    def ready(item: Item) -> int:
        size = 2 if kept[item.weights[item.call.p[1].name]].form == "BF16" else 4
        return size * item.call.n[0] // item.call.per

    products = [item for item in items if item.call.kernel in ("linear", "swiglu")]
    return 4 * _places(items, _strides(widths), ())[1] + max(map(ready, products), default=0)


def _places(items: Sequence[Item], strides: Mapping[int, int], pinned: Sequence[int]) -> tuple[dict[int, int], int]:
    """Register -> where it begins, in floats for each token, and how many in all: registers whose lives do not meet share."""
    per = {item.registers[reg]: item.call.per for item in items for reg in item.call.writes}
    strides = {reg: -(-stride // per.get(reg, 1) // LINE) * LINE for reg, stride in strides.items()}
    lives: dict[int, list[int]] = {reg: [0, len(items)] for reg in pinned}
    for number, item in enumerate(items):
        for operand in item.call.p:
            if isinstance(operand, Rows) and not (item.logits and operand.reg in item.call.writes):
                first = number if operand.reg in item.call.writes else 0  # what nothing writes is there from the beginning
                life = lives.setdefault(item.registers[operand.reg], [first, number])
                life[1] = max(life[1], number)
    taken: list[tuple[int, int, int, int]] = []  # begin, end, first, last
    places: dict[int, int] = {}
    for reg, (first, last) in sorted(lives.items(), key=lambda life: -strides[life[0]]):
        at = 0
        for begin, end, one, other in sorted(taken):
            if one <= last and first <= other and at + strides[reg] > begin:
                at = max(at, end)
        places[reg] = at
        taken.append((at, at + strides[reg], first, last))
    return places, max((end for _, end, _, _ in taken), default=0)
