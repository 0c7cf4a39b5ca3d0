"""A few numbers between the host and a device, without waiting for what the device does meanwhile."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(given: Tensor, place: torch.device) -> Tensor:
    """`given` at `place`. From the host to a GPU it goes through page-locked memory, and nothing waits for the copy."""
    return given.to(place) if _waits(given, place) else given.pin_memory().to(place, non_blocking=True)


def put(into: Tensor, given: Tensor) -> None:
    """Copy `given` into `into`, wherever the two are, as `to_device` does."""
    if _waits(given, into.device):
        into.copy_(given)
    else:
        into.copy_(given.pin_memory(), non_blocking=True)


def _waits(given: Tensor, place: torch.device) -> bool:
    return given.device.type != "cpu" or place.type != "cuda"


class Coming:
    """Values of a device on their way to the host: the copy is asked for now, and `here` waits for it and not for more."""

    def __init__(self, values: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if values.device.type != "cuda":
            self._host = values.cpu()
            return
        self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        self._host.copy_(values, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record(torch.cuda.current_stream(values.device))

    def here(self) -> Tensor:
        """The values on the host."""
        if self._event is not None:
            self._event.synchronize()
        return self._host
