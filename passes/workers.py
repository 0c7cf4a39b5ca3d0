"""Compile regions side by side: one process a core, each taking the next job when it is done.

A worker is this module run as a script. It reads one JSON job a line, {"text", "form", "max_batch", "max_len", "least", "out"},
and answers each with {"done": true} or {"error": text}. Compiled code is kept in GLMC_CACHE, if that is set, under a key of
everything it depends on: the region's text, form, bounds, torch, CPU, and the sources of kernels and lowering.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import torch

from glmc import kernels, knobs
from glmc.errors import GlmcError, InternalError
from glmc.machine import cpu_flags
from glmc.passes import lower
from glmc.program import Region

_ENDINGS = (".so", ".json")
Job = tuple[Region, str]


def compile_all(jobs: list[Job], bounds: lower.Bounds, folder: Path, done: Callable[[int], None]) -> Iterator[Path]:
    """Compile every (region, form) into `folder`; yields the files made, in the order of `jobs`.

    done(n) is called when n jobs are finished. Raises InternalError with the compiler's words.
    """
    queue: SimpleQueue[Job] = SimpleQueue()
    for job in jobs:
        queue.put(job)
    finished: list[Job] = []
    failed: list[tuple[Job, BaseException]] = []
    workers: list[_Worker] = []
    outs = {job: folder / f"{job[0].name}.{job[1]}.so" for job in jobs}

    def serve() -> None:
        with _Worker() as worker:
            workers.append(worker)
            while not failed:
                try:
                    job = queue.get_nowait()
                except Empty:
                    return
                try:
                    _compile_or_reuse(job, bounds, outs[job], worker)
                except Exception as error:  # raised again below, where the caller is
                    failed.append((job, error))
                    return
                finished.append(job)

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(min(os.cpu_count() or 1, len(jobs)))]
    for thread in threads:
        thread.start()
    try:
        while any(t.is_alive() for t in threads):
            done(len(finished))
            for thread in threads:
                thread.join(timeout=0.2)
    except BaseException as interrupt:  # no compiler may go on behind it
        failed.append((jobs[0], interrupt))
        for worker in workers:
            worker.stop()
        raise
    if failed:
        (region, form), error = failed[0]
        if isinstance(error, OSError) or (isinstance(error, GlmcError) and not isinstance(error, InternalError)):
            raise error
        raise InternalError(f"a region could not be compiled: {error}", field=f"{region.name}.{form}")
    done(len(finished))
    for job in jobs:
        yield from (p for e in _ENDINGS if (p := outs[job].with_suffix(e)).is_file())


class _Worker:
    """A child process, started at its first job and ended with the block."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self._process is not None:
            self._log.close()

    def stop(self) -> None:
        """Kill the process and the compilers it started."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def run(self, region: Region, form: str, bounds: lower.Bounds, out: Path) -> None:
        if self._process is None:
            self._log = tempfile.TemporaryFile("w+")  # a file, since a full pipe would stop the compiler
            self._process = subprocess.Popen([sys.executable, "-m", "glmc.passes.workers"], text=True,
                                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
                                             start_new_session=True)
        job = {"text": region.text(), "form": form, "max_batch": bounds.max_batch, "max_len": bounds.max_len,
               "least": bounds.least, "out": str(out)}
        asked, answers = self._process.stdin, self._process.stdout
        if asked is None or answers is None:
            raise InternalError("a compiling process was started without its pipes")
        try:
            asked.write(json.dumps(job) + "\n")
            asked.flush()
            answer = answers.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._log.seek(0)
            raise InternalError(f"the compiling process ended: {self._log.read()[-2000:]}")
        said = json.loads(answer)
        if said.get("full"):
            raise OSError(errno.ENOSPC, "no space left while compiling a region", str(out))
        if "error" in said:
            raise InternalError(said["error"])


def _compile_or_reuse(job: Job, bounds: lower.Bounds, out: Path, worker: _Worker) -> None:
    region, form = job
    cache = knobs.get("GLMC_CACHE")
    if not cache:
        return worker.run(region, form, bounds, out)
    kept = Path(cache) / f"{_key(region, form, bounds)}.so"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        worker.run(region, form, bounds, out)
        for ending in _ENDINGS[::-1]:  # the library last: it says that the entry is whole
            if out.with_suffix(ending).is_file():
                passing = kept.with_suffix(f"{ending}.{os.getpid()}.{threading.get_ident()}")
                shutil.copyfile(out.with_suffix(ending), passing)
                passing.replace(kept.with_suffix(ending))
        return None
    for ending in _ENDINGS:
        if kept.with_suffix(ending).is_file():
            shutil.copyfile(kept.with_suffix(ending), out.with_suffix(ending))
    return None


def _key(region: Region, form: str, bounds: lower.Bounds) -> str:
    sources = sorted([*kernels.FOLDER.glob("**/*.py"), Path(lower.__file__)])
    parts = [region.text(), form, repr(bounds), torch.__version__, " ".join(cpu_flags()),
             *(p.read_text() for p in sources)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def main() -> None:
    """Serve jobs from stdin until it closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to stderr, not between the answers
    for line in sys.stdin:
        job = json.loads(line)
        try:
            bounds = lower.Bounds(job["max_batch"], job["max_len"], job["least"])
            lower.compile_region(Region.parse(job["text"]), job["form"], bounds, Path(job["out"]))
            said: dict[str, Any] = {"done": True}
        except Exception as error:  # whatever the compiler raises becomes the answer
            text = f"{type(error).__name__}: {error}"
            said = {"error": text, "full": "No space left on device" in text}
        answers.write(json.dumps(said) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
