"""Run a command in a process of its own and say how long it took and how much memory it and its children held.

A child's ru_maxrss starts at its parent's, so whoever measures memory with this keeps torch out of its own process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from glmc.errors import InternalError

INTERVAL = 0.02
"""Seconds between two looks at a tree of processes."""


@dataclass
class Finished:
    """output: stdout. peak_bytes: ru_maxrss of the largest single process. tree_peak_bytes: most PSS of all at once."""

    output: str
    seconds: float
    peak_bytes: int
    tree_peak_bytes: int | None = None
    looks: int = 0

    def json(self) -> dict[str, Any]:
        """The JSON object on the last line of stdout."""
        return json.loads(self.output.strip().splitlines()[-1])


def python(*arguments: Any) -> list[str]:
    """A command line for this interpreter."""
    return [sys.executable, *map(str, arguments)]


def run(command: list[str], environment: dict[str, str | None] | None = None, watch: bool = False) -> Finished:
    """Run `command` to its end; environment: changes to this process's own, None removes a variable.

    watch: also sample the memory of the whole tree of processes every INTERVAL. Raises InternalError with the end of
    stderr when the command fails.
    """
    changed = {**os.environ, **{k: v for k, v in (environment or {}).items() if v is not None}}
    for name in (k for k, v in (environment or {}).items() if v is None):
        changed.pop(name, None)
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=errors, env=changed)
        watcher = _Watcher(process.pid) if watch else None
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if watcher:
            watcher.stop()
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            raise InternalError("a measured process failed", field=" ".join(map(os.path.basename, command[:3])),
                                expected="exit status 0", found=f"{process.returncode}: {errors.read()[-300:]}")
        return Finished(output.read(), seconds, usage.ru_maxrss * 1024, watcher and watcher.peak,
                        watcher.looks if watcher else 0)


class _Watcher:
    """Looks at a process and all below it: PSS, so that a page shared by two counts once."""

    def __init__(self, pid: int) -> None:
        self.peak, self.looks = 0, 0
        self._root, self._over = psutil.Process(pid), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(INTERVAL):
            try:
                tree = [self._root, *self._root.children(recursive=True)]
            except psutil.Error:  # it ended between two looks
                return
            self.peak = max(self.peak, sum(_held(process) for process in tree))
            self.looks += 1

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


def _held(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except psutil.Error:  # a compiler's process that has just ended holds nothing
        return 0


def own_memory() -> dict[str, int]:
    """This process's memory by the kernel's count, in bytes: "peak" since it was started, "now"."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {"peak": int(fields["VmHWM"].split()[0]) * 1024, "now": int(fields["VmRSS"].split()[0]) * 1024}
