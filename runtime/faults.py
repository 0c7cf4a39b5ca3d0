"""Faults to plant in one rank, where GLMC_FAULT asks for one: how the others take it is what is tested.

A fault strikes once, where the rank is about to make the call that belongs to a phase.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glmc import knobs
from glmc.errors import UsageError
from glmc.runtime import envelope
from glmc.runtime.exchange import BODY
from glmc.runtime.ranks import MAIN
from glmc.runtime.world import World

PHASES = {"meet": "", "start": "start", "load": "load", "prompt": "prompt", "decode": "decode 2", "close": "close",
          "prior": "prior", "glyphs": "glyphs", "condition": "condition", "denoise": "denoise 2", "pixels": "pixels"}
"""Name -> the stage in which a fault strikes; meet: before the rank knows any other."""
KINDS = ("raise", "kill", "freeze", "hang", "slow", "exit0", "skip", "shape", "dtype", "corrupt", "disagree", "nan")
"""What a rank does. hang: lives and never comes. slow: comes at 0.8 of the deadline, which is no fault. skip: leaves out a call
and goes on. shape, dtype, corrupt: its header says something else. disagree: it holds other facts, tokens or ids."""
_SENT = {"prompt": "ids", "prior": "target"}
"""Stage that one rank runs for all -> whole numbers in what it sends."""
_OTHER = {"int64": "float64", "uint8": "int8", "float32": "int32", "int8": "uint8"}


class Planted(Exception):
    """What a fault of kind `raise` raises: no error of glmc."""


@dataclass(frozen=True)
class Fault:
    """rank: whose fault; phase: one of PHASES; kind: one of KINDS; mark: a file to make when it strikes, "" for none."""

    rank: int
    phase: str
    kind: str
    mark: str = ""

    @staticmethod
    def asked() -> Fault | None:
        """The fault that GLMC_FAULT asks for. Raises UsageError."""
        text = knobs.get("GLMC_FAULT")
        if not text:
            return None
        said = dict(part.partition("=")[::2] for part in text.split(","))
        needed = {"rank", "stage", "kind"}
        if not needed <= set(said) <= {*needed, "mark"} or said["stage"] not in PHASES or said["kind"] not in KINDS or not (
                said["rank"].isdigit()):
            raise UsageError("the fault cannot be read", field="GLMC_FAULT", found=text,
                             expected=f"rank=N,stage={'|'.join(PHASES)},kind={'|'.join(KINDS)}")
        return Fault(int(said["rank"]), said["stage"], said["kind"], said.get("mark", ""))

    def at(self, rank: int, phase: str, deadline: float) -> None:
        """Strike if it is this rank's fault and phase."""
        if (rank, phase) == (self.rank, self.phase):
            self.strike(deadline)

    def strike(self, deadline: float) -> None:
        """What happens to the process as a whole; other kinds leave it alone."""
        if self.mark:
            Path(self.mark).touch()
        if self.kind == "raise":
            raise Planted("a planted fault")
        if self.kind in ("kill", "freeze"):
            os.kill(os.getpid(), signal.SIGKILL if self.kind == "kill" else signal.SIGSTOP)
        if self.kind == "exit0":
            os._exit(0)
        if self.kind in ("hang", "slow"):
            time.sleep(deadline * (0.8 if self.kind == "slow" else 100))


class FaultyWorld(World):
    """A world in which the planted fault strikes this rank."""

    fault: Fault
    _struck = False

    def _strikes(self, stage: str, *kinds: str) -> bool:
        """Whether the fault strikes now and is one of `kinds`; one of the whole process has then struck."""
        if self._struck or stage != PHASES[self.fault.phase]:
            return False
        self.stage = stage  # what is raised here happens in the stage, before its first call
        self.fault.strike(self.deadline)
        if self.fault.kind in ("shape", "dtype", "corrupt") or (self.fault.kind == "disagree" and stage not in _SENT):
            self._tamper()
        self._struck = True
        if self.fault.kind == "skip":
            self.enter(stage)
        return self.fault.kind in kinds

    def agree(self, facts: Mapping[str, str], stage: str = "start") -> None:
        if not self._strikes(stage, "skip"):
            super().agree(facts, stage)

    def same(self, stage: str, *tensors: torch.Tensor) -> None:
        if not self._strikes(stage, "skip"):
            super().same(stage, *tensors)

    def main_then_broadcast(self, stage: str, run: Callable[[], Mapping[str, torch.Tensor]], not_finite: Any = (),
                            ) -> dict[str, torch.Tensor]:
        if self._strikes(stage, "skip"):
            if stage == PHASES["prior"] and self.rank != MAIN:
                super().same("skipped")  # it has no tokens of its own to go on with, and makes its next call
            return dict(run())
        planted = {"planted": torch.tensor(float("nan"))} if self.fault.kind == "nan" and self._struck else {}
        made = super().main_then_broadcast(stage, lambda: {**run(), **planted}, not_finite)
        if self.fault.kind == "disagree" and stage == PHASES[self.fault.phase]:
            made[_SENT[stage]] = made[_SENT[stage]] ^ 1
        return made

    def _tamper(self) -> None:
        """The next frame that this rank sends is another than it should be."""
        swap = self.exchange.swap

        def tampered(stage: str) -> None:
            self.exchange.swap = swap  # type: ignore[method-assign]
            self._spoil(self.exchange.mine)
            swap(stage)

        self.exchange.swap = tampered  # type: ignore[method-assign]

    def _spoil(self, frame: memoryview) -> None:
        header = envelope.decode(frame)
        match self.fault.kind:
            case "corrupt":
                frame[20] ^= 1
                return
            case "shape":
                header = header._replace(shape=(*header.shape, 2), length=header.length * 2 or 2)
            case "dtype":
                header = header._replace(dtype=_OTHER[header.dtype])
            case "disagree" if header.op == "agree":
                facts = envelope.decode_object(bytes(frame[BODY:BODY + header.length]))
                body = envelope.encode_object({name: f"{value[::-1]}?" for name, value in facts.items()})
                frame[BODY:BODY + len(body)] = body
                header = header._replace(length=len(body), digest=hashlib.blake2b(body, digest_size=16).digest())
            case _:
                header = header._replace(digest=header.digest[::-1])
        frame[:envelope.HEADER] = envelope.encode(header)
