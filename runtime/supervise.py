"""The parent of a run of several ranks on one host: starts them, listens to them, and ends them all when one fails.

What is told is the first cause: a rank's own error before the death of a process, that before a rank that is frozen, and that
before what others say who lost the connection to it. No torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from glmc.errors import GlmcError, RankError, UsageError
from glmc.runtime.rank_fault import RankFault

SETTLE = 0.3
"""Seconds from the first trouble until the cause is judged: others' reports may be on their way."""
TERMINATE = 0.3
"""Seconds between asking a rank to end and killing it."""
STALE = 1.5
"""A rank without a sign of life for so many seconds is called frozen once another one has waited in vain."""
PART = 5.0
"""Seconds that a rank may take to leave after it has said that all is done."""
LINE = 1 << 24
_TICK = 0.05


@dataclass
class Worker:
    """One rank's process and what it has told. alive: when it last gave a sign of life."""

    rank: int
    process: subprocess.Popen
    pipe: int
    errors: Path
    alive: float
    stage: str = "start"
    fault: RankFault | None = None
    done: bool = False
    ended: float | None = None
    unread: bytes = b""
    heard: list[dict[str, Any]] = field(default_factory=list)

    def read(self) -> bool:
        """Take in what is in the pipe; False at its end. Raises RankError for what is no report."""
        data = os.read(self.pipe, 1 << 16)
        self.alive = time.monotonic()
        *lines, self.unread = (self.unread + data).split(b"\n")
        if len(self.unread) > LINE:
            raise RankFault("tells without end", ranks=(self.rank,), stage=self.stage).error()
        for line in lines:
            try:
                told = json.loads(line)
                match told["kind"]:
                    case "stage":
                        self.stage = str(told["stage"])
                    case "fault":
                        self.fault = RankFault.from_json(told["fault"])
                    case "done":
                        self.done = True
                    case "piece" | "answer":
                        self.heard.append(told)
            except (ValueError, KeyError, TypeError) as fault:
                raise RankFault(f"tells what cannot be read: {fault}", ranks=(self.rank,), stage=self.stage).error() from fault
        return bool(data)

    def death(self) -> RankFault:
        """How the process ended, in words."""
        code = self.process.returncode
        how = (f"was killed by {signal.Signals(-code).name}" if code < 0 else
               f"left with exit code {code} before its work was done")
        said = self.errors.read_text(errors="replace").strip()[-1000:]
        return RankFault(how, ranks=(self.rank,), stage=self.stage, found=said or None)


class Supervised:
    """Pieces of text as rank 0 tells them; `.result` has the fields of a Generation when they are exhausted.

    request: the fields of glmc.runtime.ranked.Request. deadline: the most seconds that a rank waits for another.
    Raises while iterated: the error of the rank that failed first, RankError for one that died, fell silent or left too early;
    all ranks have ended then. Iterate it in a thread that lives as long: the kernel ends the ranks with the thread.
    """

    def __init__(self, out: Path, request: Mapping[str, Any], ranks: int, deadline: float, device: str | None = None) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if not 2 <= ranks <= 64:
            raise UsageError("the number of ranks is out of range", field="ranks", expected="1 to 64", found=ranks)
        if not 1 <= deadline <= 86400:
            raise UsageError("the deadline is out of range", field="deadline", expected="1 to 86400 seconds", found=deadline)
        self.result: SimpleNamespace | None = None
        self._deadline, self._ranks = deadline, ranks
        self._words = [sys.executable, "-m", "glmc.runtime", str(out), "--request", json.dumps(dict(request)),
                       "--deadline", str(deadline), *(["--device", device] if device else [])]
        self._environment = {**os.environ, "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": str(max(1, cores // ranks))}
        # Large buffers in large pages: receiving 64 MB then takes half of the time.
        self._environment.setdefault("THP_MEM_ALLOC_ENABLE", "1")
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def _run(self) -> Iterator[str]:
        workers: list[Worker] = []
        with tempfile.TemporaryDirectory(prefix="glmc-ranks-") as folder:
            lifeline, parent = os.pipe()  # the workers read what nobody ever writes, and so see this process end
            try:
                for rank in range(self._ranks):
                    workers.append(self._start(rank, Path(folder), lifeline))
                yield from self._listen(workers)
            finally:
                _end(workers)
                for descriptor in (lifeline, parent, *(worker.pipe for worker in workers)):
                    os.close(descriptor)

    def _start(self, rank: int, folder: Path, lifeline: int) -> Worker:
        theirs, errors = os.pipe(), folder / f"errors-{rank}"
        environment = {**self._environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        words = [*self._words, "--file", str(folder / "meeting"), "--pipes", str(theirs[1]), str(lifeline)]
        with errors.open("wb") as file:
            process = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                                       pass_fds=(theirs[1], lifeline), process_group=0)
        os.close(theirs[1])
        return Worker(rank, process, theirs[0], errors, time.monotonic())

    def _listen(self, workers: list[Worker]) -> Iterator[str]:
        trouble: float | None = None
        with selectors.DefaultSelector() as selector:
            for worker in workers:
                selector.register(worker.pipe, selectors.EVENT_READ, worker)
            while any(worker.process.poll() is None for worker in workers) or selector.get_map():
                for key, _ in selector.select(_TICK):
                    if not key.data.read():
                        selector.unregister(key.fd)
                for told in _heard(workers):
                    if told["kind"] == "piece":
                        yield told["text"]
                    else:
                        self.result = SimpleNamespace(**told["answer"])
                now = time.monotonic()
                if trouble is None and self._suspects(workers, now):
                    trouble = now
                if trouble is not None and now - trouble > SETTLE:
                    break
        if trouble is not None or not all(worker.done for worker in workers) or self.result is None:
            self.result = None
            raise self._cause(workers, time.monotonic())

    def _suspects(self, workers: list[Worker], now: float) -> list[Worker]:
        """Ranks that have failed, died, given no sign of life for the deadline, or do not leave."""
        found = []
        for worker in workers:
            ended = worker.process.poll() is not None
            if worker.done and worker.ended is None:
                worker.ended = now
            late = worker.done and not ended and now - (worker.ended or now) > PART
            if worker.fault or late or (ended and not worker.done) or (ended and worker.process.returncode) or (
                    not ended and now - worker.alive > self._deadline):
                found.append(worker)
        return found

    def _cause(self, workers: list[Worker], now: float) -> GlmcError:
        """The error that explains the others."""
        own = [w.fault for w in workers if w.fault and w.rank in w.fault.ranks]
        ended = [w for w in workers if w.process.poll() is not None and not w.fault]
        dead = [w for w in ended if not w.done or w.process.returncode]
        frozen = [w for w in workers if w.process.poll() is None and now - w.alive > min(STALE, self._deadline)]
        told = [w.fault for w in workers if w.fault]
        if own:
            return own[0].error()
        if dead:
            return dead[0].death().error()
        if frozen:
            return RankFault(f"is frozen: no sign of life for {now - frozen[0].alive:.1f} s", ranks=(frozen[0].rank,),
                             stage=frozen[0].stage).error()
        if told:
            return told[0].error()
        return RankError("the ranks ended without an answer", found=[w.stage for w in workers])


def _heard(workers: list[Worker]) -> Iterator[dict[str, Any]]:
    for worker in workers:
        yield from worker.heard
        worker.heard.clear()


def _end(workers: list[Worker]) -> None:
    """End what still runs: ask, then kill, each with the group of processes that it leads."""
    for number, patience in ((signal.SIGTERM, TERMINATE), (signal.SIGKILL, None)):
        for worker in workers:
            if worker.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(worker.process.pid, number)
        ends = time.monotonic() + (patience or 0)
        while patience and time.monotonic() < ends and any(worker.process.poll() is None for worker in workers):
            time.sleep(0.01)
    for worker in workers:
        worker.process.wait()
