"""IREE's virtual machine on this CPU: a region's module as a call of tensors.

Tensors are handed over and taken back as they lie in memory, since the device is the CPU: nothing is copied but a value that
does not begin at 64 bytes. A region gives back the caches it was given, which it has written in place, before its own results.
"""

from __future__ import annotations

import atexit
import functools
import weakref
from collections.abc import Sequence

import torch
from iree import runtime
from torch.utils import dlpack

from glmc.errors import DamagedArtifact, InternalError
from glmc.program import Region

_ALIGN = 64
_CPU = 1
"""What DLPack calls memory of the host."""


@functools.cache
def _instance() -> runtime.VmInstance:
    return runtime.VmInstance()


@functools.cache
def _device(threads: int) -> runtime.HalDevice:
    """One thread is the caller's own; more are the device's."""
    if threads == 1:
        return runtime.get_driver("local-sync").create_default_device()
    runtime.flags.parse_flags(f"--task_topology_group_count={threads}")
    return runtime.get_driver("local-task").create_default_device()


class Loaded:
    """The region whose module is `code`, of the file `file`, on as many threads as torch has when it is loaded."""

    def __init__(self, code: bytes, region: Region, file: str) -> None:
        """Raises DamagedArtifact."""
        self._roles = [role for _, role, _ in region.inputs]
        self._caches, self._outputs = self._roles.count("cache"), len(region.outputs)
        self._device = _device(torch.get_num_threads())
        try:
            module = runtime.VmModule.copy_buffer(_instance(), code)
            hal = runtime.create_hal_module(_instance(), self._device)
            self._context = runtime.VmContext(_instance(), [hal, module])
            self._function = module.lookup_function(region.name)
        except (RuntimeError, ValueError, KeyError) as error:
            raise DamagedArtifact("the region's module cannot be loaded", file=file, found=str(error)) from error
        _LOADED.add(self)

    def __call__(self, inputs: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        """The region's results. Raises InternalError for a cache or weight that does not lie as the module reads it."""
        count = self._caches + self._outputs
        arguments, results = runtime.VmVariantList(len(inputs)), runtime.VmVariantList(count)
        for tensor, role in zip(inputs, self._roles, strict=True):
            arguments.push_ref(self._device.from_dlpack_capsule(dlpack.to_dlpack(_aligned(tensor, role))))
        self._context.invoke(self._function, arguments, results)
        views = [results.get_as_object(number, runtime.HalBufferView) for number in range(self._caches, count)]
        return [dlpack.from_dlpack(self._device.create_dlpack_capsule(view, _CPU, 0)) for view in views]

    def close(self) -> None:
        """Let go of the virtual machine."""
        del self._function, self._context, self._device


_LOADED: weakref.WeakSet[Loaded] = weakref.WeakSet()


@atexit.register
def _close() -> None:
    """IREE's bindings complain of every object that outlives them, and a command that ends with a status holds its model."""
    for loaded in list(_LOADED):
        loaded.close()
    for made in (_device, _instance):
        made.cache_clear()


def _aligned(tensor: torch.Tensor, role: str) -> torch.Tensor:
    """The tensor itself, or of a value a copy where that is not contiguous from a multiple of 64 bytes on."""
    if tensor.data_ptr() % _ALIGN == 0 and tensor.is_contiguous():
        return tensor
    if role != "value":
        raise InternalError("a tensor does not lie as the module reads it", field=role, found=list(tensor.shape),
                            expected=f"contiguous from a multiple of {_ALIGN} bytes on")
    return tensor.clone(memory_format=torch.contiguous_format)
