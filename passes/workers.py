"""Compile regions side by side: one process a core, each taking the next job when it is done.

A worker is this module run as a script. It reads one JSON job a line, {"how", "text", "form", "max_batch", "max_len", "least",
"panels", "out"}, and answers each with {"done": true} or {"error": text}. Compiled code is kept in GLMC_CACHE, if that is set,
under a key of everything it depends on: how it is made, the region's text, form, bounds, panels, the compilers, CPU, and the
sources of kernels and lowering.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import torch

from glmc import kernels, knobs
from glmc.errors import GlmcError, InternalError
from glmc.machine import cpu_flags
from glmc.passes import lower
from glmc.program import Region
from glmc.target import Target

Job = tuple[Region, str]
Panels = Mapping[str, Mapping[str, tuple[int, ...]]]
"""Region -> its weights that are kept in panels, by the region's own names, with the panels' shape."""


@dataclass(frozen=True)
class How:
    """What regions are compiled to, by its name. endings: of the files that a job may make, the one it must make first."""

    name: str
    endings: tuple[str, ...]
    needs: tuple[str, ...] = ()
    """Packages whose versions the result depends on, besides torch."""


HOW = {how.name: how for how in (
    How("aoti", (".so", ".json")),
    How("linalg", (".mlir",), ("torch-mlir",)),
    How("stablehlo", (".mlir",), ("torch-mlir",)),
    How("iree", (".vmfb", ".mlir"), ("torch-mlir", "iree-base-compiler")),
)}


def how_of(target: Target) -> How | None:
    """What regions are compiled to for a target; None where their text is all that runs."""
    return HOW.get({"mlir": "stablehlo" if target.name.endswith("stablehlo") else "linalg"}.get(target.engine, target.engine))


def compile_all(jobs: list[Job], bounds: lower.Bounds, folder: Path, done: Callable[[int], None], how: How,
                panels: Panels) -> Iterator[Path]:
    """Compile every (region, form) into `folder`; yields the files made, in the order of `jobs`.

    done(n) is called when n jobs are finished. Raises InternalError with the compiler's words.
    """
    queue: SimpleQueue[Job] = SimpleQueue()
    for job in jobs:
        queue.put(job)
    finished: list[Job] = []
    failed: list[tuple[Job, BaseException]] = []
    workers: list[_Worker] = []
    outs = {job: folder / f"{job[0].name}.{job[1]}{how.endings[0]}" for job in jobs}
    asked = {job: Asked(how, *job, bounds, panels.get(job[0].name, {}), outs[job]) for job in jobs}

    def serve() -> None:
        with _Worker() as worker:
            workers.append(worker)
            while not failed:
                try:
                    job = queue.get_nowait()
                except Empty:
                    return
                try:
                    _compile_or_reuse(asked[job], worker)
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
        yield from (p for e in how.endings if (p := outs[job].with_suffix(e)).is_file())


@dataclass(frozen=True)
class Asked:
    """One job in full: the region in `form`, to be compiled to `out` and files beside it."""

    how: How
    region: Region
    form: str
    bounds: lower.Bounds
    panels: Mapping[str, tuple[int, ...]]
    out: Path

    def to_json(self) -> str:
        return json.dumps({"how": self.how.name, "text": self.region.text(), "form": self.form,
                           "max_batch": self.bounds.max_batch, "max_len": self.bounds.max_len, "least": self.bounds.least,
                           "panels": {name: list(shape) for name, shape in self.panels.items()}, "out": str(self.out)})

    @staticmethod
    def from_json(line: str) -> Asked:
        job = json.loads(line)
        return Asked(HOW[job["how"]], Region.parse(job["text"]), job["form"],
                     lower.Bounds(job["max_batch"], job["max_len"], job["least"]),
                     {name: tuple(shape) for name, shape in job["panels"].items()}, Path(job["out"]))

    def compile(self) -> None:
        """Make the files, in this process."""
        if self.how.name == "aoti":
            return lower.compile_region(self.region, self.form, self.bounds, self.out)
        from glmc.passes import mlir  # each needs packages that the other does without

        text = mlir.text_of(self.region, self.form, self.bounds, self.panels,
                            "stablehlo" if self.how.name == "stablehlo" else "linalg", self.how.name == "iree")
        if self.how.name == "iree":
            from glmc.passes import iree

            text = iree.owning(text, self.region)
            iree.compile_text(text, self.out)
        self.out.with_suffix(".mlir").write_text(text)
        return None


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

    def run(self, job: Asked) -> None:
        if self._process is None:
            self._log = tempfile.TemporaryFile("w+")  # a file, since a full pipe would stop the compiler
            self._process = subprocess.Popen([sys.executable, "-m", "glmc.passes.workers"], text=True,
                                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
                                             start_new_session=True)
        asked, answers = self._process.stdin, self._process.stdout
        if asked is None or answers is None:
            raise InternalError("a compiling process was started without its pipes")
        try:
            asked.write(job.to_json() + "\n")
            asked.flush()
            answer = answers.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._log.seek(0)
            raise InternalError(f"the compiling process ended: {self._log.read()[-2000:]}")
        said = json.loads(answer)
        if said.get("full"):
            raise OSError(errno.ENOSPC, "no space left while compiling a region", str(job.out))
        if "error" in said:
            raise InternalError(said["error"])


def _compile_or_reuse(job: Asked, worker: _Worker) -> None:
    cache, out, endings = knobs.get("GLMC_CACHE"), job.out, job.how.endings
    if not cache:
        return worker.run(job)
    kept = Path(cache) / f"{_key(job)}{endings[0]}"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        worker.run(job)
        for ending in endings[::-1]:  # the code last: it says that the entry is whole
            if out.with_suffix(ending).is_file():
                passing = kept.with_suffix(f"{ending}.{os.getpid()}.{threading.get_ident()}")
                shutil.copyfile(out.with_suffix(ending), passing)
                passing.replace(kept.with_suffix(ending))
        return None
    for ending in endings:
        if kept.with_suffix(ending).is_file():
            shutil.copyfile(kept.with_suffix(ending), out.with_suffix(ending))
    return None


def _key(job: Asked) -> str:
    folder = Path(lower.__file__).parent
    sources = sorted([*kernels.FOLDER.glob("**/*.py"), *(folder / name for name in ("lower.py", "mlir.py", "iree.py"))])
    parts = [job.how.name, job.region.text(), job.form, repr(job.bounds), repr(job.panels), torch.__version__,
             *map(importlib.metadata.version, job.how.needs), " ".join(cpu_flags()), *(p.read_text() for p in sources)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def main() -> None:
    """Serve jobs from stdin until it closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to stderr, not between the answers
    for line in sys.stdin:
        try:
            Asked.from_json(line).compile()
            said: dict[str, Any] = {"done": True}
        except Exception as error:  # whatever the compiler raises becomes the answer
            text = f"{type(error).__name__}: {error}"
            said = {"error": text, "full": "No space left on device" in text}
        answers.write(json.dumps(said) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
