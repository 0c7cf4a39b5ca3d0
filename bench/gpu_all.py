"""Everything that wants a GPU, in one prepared run: each in a process of its own, by worth, within a budget of seconds.

    python bench/gpu_all.py OUT [--seconds 780] [--scratch FOLDER] [--only NAME,NAME]

OUT gets each one's log and result as they come, and `summary.json`: what ran, how it ended, what was left out and why.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GRACE = 10.0
"""Seconds between asking a process to end and ending it, and what is kept back at the end."""


@dataclass(frozen=True)
class Job:
    """A command, the seconds within which it is of use at all, and those after which it is ended. needs: jobs that must have
    ended well."""

    name: str
    command: Sequence[str]
    least: float
    most: float
    needs: tuple[str, ...] = ()


@dataclass
class Outcome:
    """status: "ok", "failed", "ended" for one that took too long, or "left out". why: of one that is not "ok"."""

    name: str
    status: str
    seconds: float = 0.0
    code: int | None = None
    why: str | None = None
    command: list[str] = field(default_factory=list)


def jobs(out: Path, scratch: Path) -> Iterator[Job]:
    """What the project wants to know of a GPU, the most wanted first."""
    def bench(script: str, *words: str) -> list[str]:
        return [sys.executable, str(ROOT / "bench" / script), *words]

    def decode(where: str, file: str, *words: str) -> list[str]:
        return bench("gpu_decode.py", "--scratch", str(scratch / where), "--out", str(out / f"{file}.json"), *words)

    def tests(*words: str) -> list[str]:
        return [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *words]

    air = ("--config", str(ROOT / "bench" / "configs" / "glm-4.5-air.json"), "--kind", "mxfp4", "--rows", "1,2,4,8,16,32,64",
           "--steps", "64", "--rounds", "3")
    yield Job("decode-prepare", decode("dense", "decode", "--prepare"), 30, 150)
    yield Job("decode", decode("dense", "decode", "--peers", ""), 20, 90, ("decode-prepare",))
    yield Job("tests", tests("--deselect", "tests/kernels/test_sanitizer.py"), 60, 240)
    yield Job("kernels", bench("gpu_kernels.py", "--out", str(out / "kernels.json")), 30, 150)
    yield Job("followed", bench("gpu_followed.py", "--out", str(out / "followed.json")), 15, 45)
    yield Job("decode-peers", decode("dense", "decode_peers", "--peers", "eager,compiled", "--rounds", "3"), 60, 150,
              ("decode-prepare",))
    gone = "import shutil, sys; shutil.rmtree(sys.argv[1], ignore_errors=True)"
    yield Job("room", [sys.executable, "-c", gone, str(scratch / "dense")], 0, 30)
    yield Job("coded", bench("gpu_coded.py", "--out", str(out / "coded.json")), 20, 60)
    yield Job("sampling", bench("gpu_sampling.py", "--out", str(out / "sampling.json")), 15, 45)
    yield Job("sanitizer", tests("tests/kernels/test_sanitizer.py"), 60, 200)
    yield Job("air", decode("air", "air", *air, "--layers", "fit", "--peers", ""), 90, 240)
    yield Job("air-peers", decode("air-peers", "air_peers", *air, "--layers", "4"), 60, 150)
    yield Job("vision", bench("gpu_vision.py", "--out", str(out / "vision.json")), 30, 90)


def run(every: Sequence[Job], out: Path, seconds: float) -> list[Outcome]:
    """Run jobs in order while they fit; the summary is written after each."""
    out.mkdir(parents=True, exist_ok=True)
    began, outcomes = time.monotonic(), []
    for job in every:
        left = seconds - GRACE - (time.monotonic() - began)
        ended = {one.name: one.status for one in outcomes}
        lacking = [name for name in job.needs if ended.get(name) != "ok"]
        if lacking:
            outcome = Outcome(job.name, "left out", why=f"{lacking[0]}: {ended.get(lacking[0], 'not asked for')}")
        elif left < job.least:
            outcome = Outcome(job.name, "left out", why=f"{max(left, 0):.0f} s are left, it needs {job.least:.0f}")
        else:
            outcome = finished(job, out / f"{job.name}.log", min(job.most, left))
        outcome.command = list(job.command)
        outcomes.append(outcome)
        print(f"{outcome.name}: {outcome.status}, {outcome.seconds:.0f} s", *filter(None, [outcome.why]), flush=True)
        (out / "summary.json").write_text(json.dumps({
            "seconds": round(time.monotonic() - began, 1), "budget": seconds, "jobs": [asdict(one) for one in outcomes],
            "waiting": [one.name for one in every[len(outcomes):]]}, indent=1) + "\n")
    return outcomes


def finished(job: Job, log: Path, limit: float) -> Outcome:
    """A job run to its end, or ended after `limit` seconds with all that it started; what it says goes to the log."""
    began = time.monotonic()
    here = str(ROOT / "bench")
    paths = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    with log.open("wb") as said:
        try:
            process = subprocess.Popen(list(job.command), stdout=said, stderr=subprocess.STDOUT, cwd=ROOT,
                                       start_new_session=True, env=os.environ | {"PYTHONPATH": paths})
        except OSError as fault:
            return Outcome(job.name, "failed", why=str(fault))
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            end(process)
            return Outcome(job.name, "ended", time.monotonic() - began, process.returncode, f"it took more than {limit:.0f} s")
        finally:
            end(process)
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    why = None if code == 0 else (lines or ["it said nothing"])[-1][:300]
    return Outcome(job.name, "failed" if code else "ok", time.monotonic() - began, code, why)


def end(process: subprocess.Popen) -> None:
    """End a process and all that it started, which share its group."""
    for sign, wait in ((signal.SIGTERM, GRACE / 2), (signal.SIGKILL, GRACE / 2)):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("out", type=Path)
    options.add_argument("--seconds", type=float, default=780)
    options.add_argument("--scratch", type=Path, default=Path("/dev/shm/glmc-gpu"), help="where checkpoints and artefacts go")
    options.add_argument("--only", help="names of jobs, in the order in which they are to run")
    given = options.parse_args()
    every = {job.name: job for job in jobs(given.out.resolve(), given.scratch)}
    run([every[name] for name in given.only.split(",")] if given.only else list(every.values()), given.out, given.seconds)


if __name__ == "__main__":
    main()
