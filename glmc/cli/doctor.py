"""`glmc doctor`: what this machine can compile for and run, and why not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import glmc
from glmc import knobs, machine, native
from glmc.cli import arguments, show
from glmc.errors import UnsupportedTarget, UsageError
from glmc.target import TARGETS, Target

_PACKAGES = ("torch", "transformers", "triton", "safetensors", "tokenizers")


def doctor(json: arguments.Json = False) -> None:
    """Say what this machine can compile for and run, and why not."""
    packages = {name: _version(name) for name in _PACKAGES}
    compiler, library = _compiler(), _library()
    gpus, driver, here = _gpus(packages)
    report = {
        "glmc": glmc.__version__, "python": platform.python_version(), "system": platform.platform(),
        "packages": packages, "compiler": compiler, "native": library,
        "cpu": {"arch": platform.machine(), "flags": machine.cpu_flags(), "threads": _threads()},
        "memory": _memory(), "disk_free_bytes": shutil.disk_usage(Path.cwd()).free,
        "gpus": gpus, "driver_cuda": driver,
        "targets": {t.name: {"compiles": (why := _why_not(t, packages, compiler, library)) is None, "why_not": why,
                             **({"here": here[t.name]} if t.name in here else {})} for t in TARGETS.values()},
        "knobs": {name: _knob(name) for name in knobs.KNOBS if os.environ.get(name)},
    }
    if json:
        show.data(report)
        return
    _print(report)


def _version(name: str) -> str | None:
    """The installed version of a package, without importing it; None where it is not installed."""
    return importlib.metadata.version(name) if importlib.util.find_spec(name) else None


def _compiler() -> dict[str, str | None]:
    """The C++ compiler that CXX names, or g++: its path, its version's first line, or why it is of no use."""
    asked = os.environ.get("CXX") or "g++"
    path = shutil.which(asked)
    if path is None:
        return {"name": asked, "path": None, "version": None, "fault": f"no program called {asked} is on PATH"}
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as fault:
        return {"name": asked, "path": path, "version": None, "fault": f"`{path} --version` fails: {fault}"}
    return {"name": asked, "path": path, "version": (done.stdout.splitlines() or [""])[0], "fault": None}


def _library() -> dict[str, Any]:
    """The builds of the native library that are installed, the one that this CPU gets, or why it gets none."""
    try:
        return {"built": list(native.built()), "used": native.variant(), "fault": None}
    except UnsupportedTarget as fault:
        return {"built": list(native.built()), "used": None, "fault": fault.what}


def _threads() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> dict[str, int | None]:
    """Bytes of main memory, in all and available now; None where the system does not tell."""
    listing = Path("/proc/meminfo")
    if not listing.is_file():
        return {"total_bytes": None, "available_bytes": None}
    sizes = {}
    for line in listing.read_text().splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if len(words) == 2 and words[1] == "kB":
            sizes[name] = int(words[0]) * 1024
    return {"total_bytes": sizes.get("MemTotal"), "available_bytes": sizes.get("MemAvailable")}


def _why_not(target: Target, packages: dict[str, str | None], compiler: dict[str, str | None],
             library: dict[str, Any]) -> str | None:
    """The reason why this machine cannot compile for `target`, or None when it can."""
    lacking = [name for name in ("torch", "transformers") if packages[name] is None]
    if wanting := target.lacking():
        return f"not installed: {', '.join(lacking + wanting)}; pip install 'glmc[{target.extra}]'"
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    if target.gpu is not None and packages["triton"] is None:
        return "not installed: triton"
    return {"aoti": compiler["fault"], "native": library["fault"]}.get(target.engine)


def _gpus(packages: dict[str, str | None]) -> tuple[list[dict[str, Any]], str | None, dict[str, str]]:
    """The GPUs here, the CUDA version of NVIDIA's driver, and each GPU target's verdict; nothing without torch."""
    if packages["torch"] is None:
        return [], None, {}
    from glmc.runtime import gpus

    found, driver = gpus.seen(), gpus.driver_cuda()
    return found, driver, {t.name: gpus.verdict(t, found, driver) for t in TARGETS.values() if t.gpu}


def _knob(name: str) -> str:
    """A knob's value as it is read, or what is wrong with it."""
    try:
        value = knobs.get(name)
    except UsageError as fault:
        return f"error: {fault.what}, found {fault.found}"
    if knobs.KNOBS[name].secret:
        return "set" if value else ""
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _print(report: dict[str, Any]) -> None:
    def size(count: int | None) -> str:
        return "unknown" if count is None else show.bytes_text(count)

    compiler, cpu, memory, library = report["compiler"], report["cpu"], report["memory"], report["native"]
    screen = show.console()
    screen.print(show.facts("machine", {
        "glmc": report["glmc"], "python": report["python"], "system": report["system"],
        **{name: version or "not installed" for name, version in report["packages"].items()},
        "C++ compiler": compiler["fault"] or f"{compiler['path']}: {compiler['version']}",
        "native library": library["fault"] or f"{library['used']}, of {', '.join(library['built'])}",
        "CPU": f"{cpu['arch']}, {cpu['threads']} threads, {', '.join(cpu['flags']) or 'no known instruction sets'}",
        "memory": f"{size(memory['total_bytes'])}, {size(memory['available_bytes'])} available",
        "disk": f"{size(report['disk_free_bytes'])} free in this folder",
        "GPUs": "; ".join(f"{gpu['name']}, {gpu['target']}, {size(gpu['free_bytes'])} free of {size(gpu['total_bytes'])}"
                          for gpu in report["gpus"]) or "torch sees none",
        **({"NVIDIA driver": f"offers CUDA {report['driver_cuda']}"} if report["driver_cuda"] else {}),
        **report["knobs"],
    }), show.rows("targets", ("target", "compiles here", "why not", "on a GPU here"),
                  [(name, "yes" if said["compiles"] else "no", said["why_not"] or "", said.get("here", ""))
                   for name, said in report["targets"].items()]))
