"""What ties a worker to the process that started it: signs of life one way, and the end of the worker with its parent.

Reports are lines of JSON in a pipe: beats from a thread of its own, the stage that is entered, pieces of text, the answer, a
fault, and at last "done". No torch: signs of life begin before torch is imported.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
from typing import Any, Protocol

from glmc.errors import printable
from glmc.runtime.rank_fault import RankFault

BEAT = 0.2
"""Seconds between two signs of life."""
_PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


class Report(Protocol):
    """Whom a worker tells how it gets on."""

    def tell(self, kind: str, **what: Any) -> None:
        """kind: stage, piece, answer or done."""
        ...

    def fault(self, fault: RankFault) -> None:
        """Why the worker stops."""
        ...


class Piped:
    """Reports to a parent. report: the pipe to write to; parent: a pipe that is closed when the parent ends."""

    def __init__(self, report: int, parent: int) -> None:
        self._report, self._lock = report, threading.Lock()
        if sys.platform == "linux":  # also ends a worker that is stopped and cannot look
            ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    def tell(self, kind: str, **what: Any) -> None:
        line = json.dumps({"kind": kind, **what}, allow_nan=False).encode() + b"\n"
        with self._lock:
            while line:
                line = line[os.write(self._report, line):]

    def fault(self, fault: RankFault) -> None:
        self.tell("fault", fault=fault.to_json())

    def _beat(self) -> None:
        pause = threading.Event()
        while not pause.wait(BEAT):
            self.tell("beat")


def _end_with(parent: int) -> None:
    os.read(parent, 1)  # returns when the last writer, which is the parent, has closed it
    os.kill(os.getpid(), signal.SIGKILL)


class Spoken:
    """Reports to a person, where torchrun started the worker: text on stdout, from rank 0 alone, and faults on stderr."""

    def __init__(self) -> None:
        self._inside = False
        """Whether a line of the answer is not ended yet."""

    def tell(self, kind: str, **what: Any) -> None:
        if kind == "piece":
            sys.stdout.write(what["text"])
            self._inside = True
        elif kind == "done":
            sys.stdout.write("\n" * what["main"])
            self._inside = False
        sys.stdout.flush()

    def fault(self, fault: RankFault) -> None:
        self.tell("done", main=self._inside)
        lines = fault.error().sentence().split("\n")
        sys.stderr.write("error: " + "\n".join(map(printable, lines)) + "\n")
