"""Starting a kernel that was built ahead on an NVIDIA GPU, through the driver alone: no compiler runs, not even for a launcher.

Triton's own launchers are C that it compiles when a kernel is first opened. Here the driver's functions are called from
Python; once a step is recorded in a device graph, how long that takes does not matter.
"""

from __future__ import annotations

import ctypes
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glmc.errors import IncompatibleArtifact

_SCALARS = {"i32": ctypes.c_int32, "fp32": ctypes.c_float}
_ADDRESS = ctypes.c_uint64
_MOST_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_UNASKED = 48 << 10
"""Bytes of shared memory that a program has without asking."""
_HIDDEN = 2
"""Pointers that Triton adds behind a kernel's own parameters, for scratch memory that our kernels do not use."""


@functools.cache
def driver() -> Any:
    """The driver's library. Raises IncompatibleArtifact where there is none."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as fault:
        raise IncompatibleArtifact("there is no NVIDIA driver here", field="libcuda.so.1", found=str(fault)) from fault


def _demand(status: int, doing: str, what: object) -> None:
    """Raise IncompatibleArtifact for what the driver refuses."""
    if status:
        said = ctypes.c_char_p()
        driver().cuGetErrorString(status, ctypes.byref(said))
        raise IncompatibleArtifact(f"the driver cannot {doing}", field=str(what), found=(said.value or b"").decode() or status,
                                   hint="compile the artefact again on this machine, or update the driver")


class Cubin:
    """A kernel in the current device's context. signature: Triton's types of its parameters, "constexpr" for the fixed ones."""

    def __init__(self, binary: Path, description: Path, signature: Sequence[str]) -> None:
        described = json.loads(description.read_text())
        self.name, self.threads, self.shared = described["name"], 32 * described["num_warps"], described["shared"]
        self._kinds = [_ADDRESS if kind.startswith("*") else _SCALARS[kind] for kind in signature if kind != "constexpr"]
        self._module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        data, lib = binary.read_bytes(), driver()
        _demand(lib.cuModuleLoadData(ctypes.byref(self._module), data), "load the kernel", binary.name)
        _demand(lib.cuModuleGetFunction(ctypes.byref(self._function), self._module, self.name.encode()), "find", self.name)
        if self.shared > _UNASKED:
            _demand(lib.cuFuncSetAttribute(self._function, _MOST_SHARED, self.shared), "give shared memory to", self.name)

    def __call__(self, grid: tuple[int, int, int], stream: int, values: Sequence[float | int]) -> None:
        """Start it. values: addresses of tensors and numbers, one a parameter that is not fixed."""
        held = [kind(value) for kind, value in zip(self._kinds, values, strict=True)] + [_ADDRESS(0)] * _HIDDEN
        places = (ctypes.c_void_p * len(held))(*map(ctypes.addressof, held))
        _demand(driver().cuLaunchKernel(self._function, *grid, self.threads, 1, 1, self.shared, ctypes.c_void_p(stream), places,
                                        None), "start", self.name)
