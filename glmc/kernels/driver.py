"""Kernels that were built ahead, started by the GPU's driver itself: no compiler runs, and nothing of Triton's is asked.

For NVIDIA. Triton's own launcher would do the same, but some versions of Triton have a C compiler make one for each kind of
kernel where it is first started, and it only takes what its own version built.
"""

from __future__ import annotations

import ctypes
import functools
import struct
import threading
from collections.abc import Sequence
from typing import Any

import torch

from glmc.errors import IncompatibleArtifact, InternalError

TYPES = {"i32": "i", "i64": "q", "fp32": "f"}
"""Triton's name of a number's type -> how `struct` packs it; what begins with * is a pointer."""
SCRATCH = 2
"""Pointers to scratch memory that Triton appends to a kernel's parameters; null, since nothing is built that uses them."""

_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_PLAIN_SHARED = 48 << 10  # bytes that a program gets without asking
_THREAD = threading.local()


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as fault:
        raise IncompatibleArtifact("there is no NVIDIA driver here", found=str(fault),
                                   hint="run it where the GPU is") from fault


def _call(name: str, *arguments: Any) -> str | None:
    """Call a function of the driver; what it says where it fails."""
    status = getattr(_library(), name)(*arguments)
    if status == 0:
        return None
    text = ctypes.c_char_p()
    _library().cuGetErrorString(status, ctypes.byref(text))
    return f"{name}: {(text.value or b'unknown error').decode()} ({status})"


def version() -> tuple[int, int]:
    """The CUDA version that the driver offers, (13, 0). Raises IncompatibleArtifact."""
    number = ctypes.c_int()
    fault = _call("cuDriverGetVersion", ctypes.byref(number))
    if fault:
        raise IncompatibleArtifact("the NVIDIA driver does not tell its version", found=fault)
    return number.value // 1000, number.value % 1000 // 10


def format_of(types: Sequence[str]) -> str:
    """How `struct` packs a kernel's parameters, given their Triton types, as C lays them out; scratch memory last."""
    return "".join("P" if one.startswith("*") else TYPES[one] for one in types) + "P" * SCRATCH


class Kernel:
    """A kernel in the memory of torch's current device: `kernel(grid, values)` starts it on the current stream."""

    def __init__(self, binary: bytes, described: dict[str, Any], types: Sequence[str]) -> None:
        """binary: a cubin. described: Triton's description of it. types: of its parameters. Raises IncompatibleArtifact."""
        self.name, self._format = described["name"], format_of(types)
        self._threads, self._shared = 32 * described["num_warps"], described["shared"]
        self._at = [struct.calcsize(self._format[:n + 1]) - struct.calcsize(self._format[n]) for n in range(len(self._format))]
        self._module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        _have_context()
        fault = (_call("cuModuleLoadData", ctypes.byref(self._module), binary)
                 or _call("cuModuleGetFunction", ctypes.byref(self._function), self._module, self.name.encode()))
        if not fault and self._shared > _PLAIN_SHARED:
            fault = _call("cuFuncSetAttribute", self._function, _DYNAMIC_SHARED, self._shared)
        if fault:
            raise IncompatibleArtifact("the driver refuses a kernel that was built ahead", field=self.name, found=fault,
                                       hint="compile it again for this GPU, or install a newer driver")

    def __call__(self, grid: tuple[int, ...], values: Sequence[Any]) -> None:
        """values: tensors on this device, and numbers. Raises InternalError where the driver does not start it."""
        _have_context()
        given = (v.data_ptr() if isinstance(v, torch.Tensor) else v for v in values)
        packed = ctypes.create_string_buffer(struct.pack(self._format, *given, *(0,) * SCRATCH))
        start = ctypes.addressof(packed)
        each = (ctypes.c_void_p * len(self._at))(*(start + at for at in self._at))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        fault = _call("cuLaunchKernel", self._function, *grid, self._threads, 1, 1, self._shared, stream, each, None)
        if fault:
            raise InternalError("the driver does not start a kernel", field=self.name, found=f"{fault}, grid {grid}")


def _have_context() -> None:
    """The driver works in a thread's current context, which torch makes by its first own call there."""
    if getattr(_THREAD, "has_context", False):
        return
    current = ctypes.c_void_p()
    fault = _call("cuCtxGetCurrent", ctypes.byref(current))
    if not fault and not current.value:
        fault = (_call("cuDevicePrimaryCtxRetain", ctypes.byref(current), torch.cuda.current_device())
                 or _call("cuCtxSetCurrent", current))
    if fault:
        raise IncompatibleArtifact("the NVIDIA driver gives this thread no context", found=fault)
    _THREAD.has_context = True
