"""NVIDIA's compute-sanitizer over a process that starts kernels: where it is, how it runs, what it said of which kernel."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

NAME = "compute-sanitizer"
TOOLS = {
    "memcheck": ("--report-api-errors", "no"),  # torch asks the driver for things that older ones do not have
    "racecheck": (), "synccheck": (), "initcheck": ()}
"""Tool -> its options beside the common ones. No filter of kernels: what is not watched would write nothing for initcheck."""
OPTIONS = ("--print-limit", "0", "--show-backtrace", "no", "--target-processes", "application-only", "--launch-timeout", "120")
ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
"""Each tensor is an allocation of the driver's: its end is known, and nothing in it was written by a tensor before."""


@dataclass(frozen=True)
class Said:
    """finished: the summary is there. faults: reports that name a kernel of ours, or copy what nobody wrote. warnings: of ours.
    others: reports about other kernels."""

    finished: bool
    faults: list[str]
    warnings: list[str]
    others: int


def found() -> str | None:
    """The path of the tool: on PATH, of a CUDA toolkit, or of the package nvidia-cuda-sanitizer-api; None without it."""
    homes = [home for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda") if home]
    homes += map(str, Path(sysconfig.get_paths()["purelib"], "nvidia").glob("*"))
    folders = [os.path.join(home, part) for home in homes for part in ("bin", NAME)]
    return shutil.which(NAME) or shutil.which(NAME, path=os.pathsep.join(folders))


def command(tool: str, program: Iterable[str], path: str) -> list[str]:
    """The command line that watches `program` with one of TOOLS."""
    return [path, "--tool", tool, *OPTIONS, *TOOLS[tool], *program]


def launches(*arguments: str) -> list[str]:
    """The command line of `launching.py`, with the packages of this process."""
    paths = [str(Path(__file__).parent), *filter(None, sys.path)]
    return [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}; import launching; launching.main(*sys.argv[1:])",
            *arguments]


def watched(tool: str, path: str, *arguments: str, seconds: float = 300) -> str:
    """What the tool and the launches said. Raises TimeoutExpired; nothing is left running."""
    process = subprocess.Popen(command(tool, launches(*arguments), path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True, env=os.environ | ENVIRONMENT, start_new_session=True)
    try:
        return process.communicate(timeout=seconds)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def reports(text: str) -> list[str]:
    """The tool's reports, each with the lines that belong to it."""
    made: list[str] = []
    for line in text.splitlines():
        said = re.fullmatch(r"\s*=========( *)(.*)", line)
        if said is None or not said[2]:
            continue
        if len(said[1]) <= 1:
            made.append(said[2])
        elif made:
            made[-1] += f"\n    {said[2]}"
    return made


def heard(text: str, kernels: Iterable[str]) -> Said:
    """What the tool's output says about `kernels`."""
    ours, end = re.compile(rf"\b({'|'.join(map(re.escape, kernels))})\b"), re.compile(r"(ERROR|RACECHECK) SUMMARY: ")
    faults, warnings, others, every = [], [], 0, reports(text)
    for report in every:
        if report == "COMPUTE-SANITIZER" or re.match(r"\w+ SUMMARY", report):
            continue
        if not ours.search(report) and not report.startswith("Host API memory access error"):
            others += 1
        else:
            (warnings if report.lower().startswith("warning") else faults).append(report)
    return Said(any(end.match(report) for report in every), faults, warnings, others)
