"""Collectives of tensors that are on a device, over the device's own library (NCCL, HCCL).

Such a call does not wait for the host, so that nothing is checked around it. What was called is added up instead, and the ranks
compare the sum once a stage, over gloo.
"""

from __future__ import annotations

import zlib
from typing import Any

import torch
import torch.distributed as dist

BACKENDS = {"cuda": "nccl", "npu": "hccl"}
"""Type of device -> torch.distributed's name for the library that moves its tensors."""


class DeviceGroup:
    """group: a group of torch.distributed whose backend takes the tensors."""

    def __init__(self, group: Any, size: int) -> None:
        self._group, self._size, self._sum, self._calls = group, size, 0, 0

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum, in the library's own order, with the same bits on each rank."""
        self._note("reduce", tensor)
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=self._group)
        return total

    def all_gather(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """All ranks' tensors, one after another along `dim`."""
        self._note("gather", tensor)
        parts = [torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device) for _ in range(self._size)]
        dist.all_gather(parts, tensor.contiguous(), group=self._group)
        return torch.cat(parts, dim)

    def _note(self, op: str, tensor: torch.Tensor) -> None:
        self._sum = zlib.crc32(f"{op} {tensor.dtype} {tuple(tensor.shape)}".encode(), self._sum)
        self._calls += 1

    def trail(self) -> bytes:
        """16 bytes that tell what was called since the last time; b"" where nothing was."""
        if not self._calls:
            return b""
        made = self._calls.to_bytes(8, "little") + self._sum.to_bytes(8, "little")
        self._sum = self._calls = 0
        return made
