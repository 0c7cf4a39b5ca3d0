"""IREE's virtual machine on this CPU: a region's module as a call of tensors.

Tensors are handed over and taken back as they lie in memory, since the device is the CPU: nothing is copied but a value that
does not begin at 64 bytes. A region gives back the caches it was given, which it has written in place, before its own results.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from iree import runtime
from torch.utils import dlpack

from glmc.errors import DamagedArtifact, InternalError
from glmc.program import Region

Call = Callable[[list[torch.Tensor]], Sequence[torch.Tensor]]
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


def load(code: bytes, region: Region, file: str) -> Call:
    """The region whose module is `code`, of the file `file`, on as many threads as torch has now. Raises DamagedArtifact."""
    place = _device(torch.get_num_threads())
    try:
        module = runtime.VmModule.copy_buffer(_instance(), code)
        context = runtime.VmContext(_instance(), [runtime.create_hal_module(_instance(), place), module])
        function = module.lookup_function(region.name)
    except (RuntimeError, ValueError, KeyError) as error:
        raise DamagedArtifact("the region's module cannot be loaded", file=file, found=str(error)) from error
    caches = sum(role == "cache" for _, role, _ in region.inputs)
    count = caches + len(region.outputs)
    roles = [role for _, role, _ in region.inputs]

    def call(inputs: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        arguments, results = runtime.VmVariantList(len(inputs)), runtime.VmVariantList(count)
        for tensor, role in zip(inputs, roles, strict=True):
            arguments.push_ref(_view(place, tensor, role))
        context.invoke(function, arguments, results)
        return [_tensor(place, results.get_as_object(n, runtime.HalBufferView)) for n in range(caches, count)]

    return call


def _view(place: runtime.HalDevice, tensor: torch.Tensor, role: str) -> runtime.HalBufferView:
    """The tensor's own memory; of a value a copy, where that is not aligned. Raises InternalError for a cache that is not."""
    if tensor.data_ptr() % _ALIGN or not tensor.is_contiguous():
        if role != "value":
            raise InternalError("a tensor does not lie as the module reads it", field=role, found=list(tensor.shape),
                                expected=f"contiguous from a multiple of {_ALIGN} bytes on")
        tensor = tensor.clone(memory_format=torch.contiguous_format)
    return place.from_dlpack_capsule(dlpack.to_dlpack(tensor))


def _tensor(place: runtime.HalDevice, view: runtime.HalBufferView) -> torch.Tensor:
    return dlpack.from_dlpack(place.create_dlpack_capsule(view, _CPU, 0))
