"""The native library: C++ kernels for CPUs, built with the package for several instruction sets, picked when it is loaded.

    AVX512   AVX-512 with bfloat16 and byte products (Zen 4, Cooper Lake and later)
    AVX2     AVX2, FMA and half conversion
    PLAIN    whatever the compiler's default is
"""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
from pathlib import Path

from glmc import knobs
from glmc.errors import UnsupportedTarget
from glmc.machine import cpu_flags

VARIANTS: dict[str, tuple[str, ...]] = {
    "avx512": ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "avx512_vnni", "avx2", "fma", "f16c"),
    "avx2": ("avx2", "fma", "f16c", "bmi2"),
    "plain": (),
}
"""Builds of the library, the best first -> the instructions that a CPU must have for it."""


class Instruction(ctypes.Structure):
    """One kernel of a program; see program.hpp."""

    _fields_ = (("op", ctypes.c_int64), ("rows", ctypes.c_int64), ("n", ctypes.c_int64 * 20), ("f", ctypes.c_double * 4),
                ("p", ctypes.c_void_p * 12))


class Step(ctypes.Structure):
    """What a run of a program is told; see program.hpp."""

    _fields_ = (("tokens", ctypes.c_int64), ("ids", ctypes.c_void_p), ("positions", ctypes.c_void_p),
                ("sequences", ctypes.c_void_p), ("wanted", ctypes.c_int64), ("which", ctypes.c_void_p),
                ("logits", ctypes.c_void_p), ("turns", ctypes.c_void_p), ("media", ctypes.c_void_p),
                ("features", ctypes.c_void_p), ("images", ctypes.c_int64), ("ends", ctypes.c_void_p),
                ("grid", ctypes.c_void_p))


class Packing(ctypes.Structure):
    """A matrix and where its panels go; see pack.hpp."""

    _fields_ = (*((name, ctypes.c_int64) for name in ("form", "kind", "rows", "width", "halves", "stride", "scale_stride")),
                *((name, ctypes.c_void_p) for name in ("source", "scales", "factors", "out")))


def built() -> dict[str, Path]:
    """Variant -> its library, of those that the installation holds."""
    folder = Path(__file__).parent
    found = {name: folder / f"_{name}{ending}" for name in VARIANTS for ending in importlib.machinery.EXTENSION_SUFFIXES[:1]}
    return {name: path for name, path in found.items() if path.is_file()}


def variant() -> str:
    """The best build that this CPU can run, or the one that GLMC_ISA names. Raises UnsupportedTarget where there is none."""
    asked, flags, there = knobs.get("GLMC_ISA"), set(cpu_flags()), built()
    able = [name for name, needs in VARIANTS.items() if name in there and flags.issuperset(needs)]
    if asked:
        able = [name for name in able if name == asked]
    if not able:
        raise UnsupportedTarget("no build of the native library runs on this CPU" if not asked else
                                "this build of the native library is not here, or this CPU cannot run it",
                                field="GLMC_ISA" if asked else None, expected=", ".join(VARIANTS),
                                found=asked or ", ".join(there) or "none built",
                                hint="the library is built when glmc is installed, by a C++20 compiler (g++ 11 or later)")
    return able[0]


@functools.cache
def _load(name: str) -> ctypes.CDLL:
    library = ctypes.CDLL(str(built()[name]))
    word, pointer = ctypes.c_int64, ctypes.c_void_p
    for function, result, arguments in (
            ("glmc_kernel", word, [ctypes.c_char_p]), ("glmc_open", pointer, [pointer, word, word, word]),
            ("glmc_run", None, [pointer, pointer]), ("glmc_run_part", None, [pointer, pointer, word, word]),
            ("glmc_close", None, [pointer]), ("glmc_profile", None, [pointer, pointer]),
            ("glmc_pack", word, [pointer, word]), ("glmc_allocate", pointer, [word]), ("glmc_free", None, [pointer])):
        getattr(library, function).restype, getattr(library, function).argtypes = result, arguments
    return library


def library() -> ctypes.CDLL:
    """The native library for this CPU. Raises UnsupportedTarget."""
    return _load(variant())
