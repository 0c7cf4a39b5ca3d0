"""Every GLMC_ environment variable: its type, its default, its sentence. A malformed value is an error."""

from __future__ import annotations

import os
from dataclasses import dataclass

from glmc.errors import UsageError


@dataclass(frozen=True)
class Knob:
    """One variable: `kind` is int, str or list (comma-separated names)."""

    name: str
    kind: type
    default: object
    sentence: str
    secret: bool = False
    """Its value is shown nowhere."""


KNOBS = {k.name: k for k in (
    Knob("GLMC_SHOW", int, 0, "1 prints the ledger, 2 pass times and differences, 3 near misses, 4 the text after each pass"),
    Knob("GLMC_KEEP", str, "", "a folder that receives what GLMC_SHOW=4 would print, one file a pass"),
    Knob("GLMC_FUEL", int, -1, "stop after this many rewrites, counted over the compilation; -1 means no limit"),
    Knob("GLMC_ONLY", list, (), "fusions that may be taken, by name, separated by commas; empty means all"),
    Knob("GLMC_ISA", str, "", "the build of the native library to use: avx512, avx2 or plain; empty means the best"),
    Knob("GLMC_TIMING", int, 1, "0 leaves fusions untimed where the target's GPU is here; their gains are then predicted"),
    Knob("GLMC_DEADLINE", int, 60, "the most seconds that one of several processes waits for another, in any stage"),
    Knob("GLMC_FAULT", str, "", "a fault to plant in one of several processes, for tests: rank=1,stage=decode,kind=kill"),
    Knob("GLMC_API_KEY", str, "", "the key that an endpoint wants which `glmc bench` measures; never shown", secret=True),
    Knob("GLMC_CACHE", str, "", "a folder where compiled regions and kernels are kept between compilations; empty means none"),
)}


def get(name: str):
    """The knob's value: int, str or tuple of str. Raises UsageError when the variable cannot be read as its type."""
    knob = KNOBS[name]
    raw = os.environ.get(name)
    if raw is None or raw == "":
        return knob.default
    if knob.kind is int:
        try:
            return int(raw)
        except ValueError:
            raise UsageError("the environment variable is not a whole number", field=name, found=raw) from None
    if knob.kind is list:
        return tuple(part.strip() for part in raw.split(",") if part.strip())
    return raw
