"""torch's own threads, for the parts of a model that torch runs beside the native library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """torch has `count` threads inside (None: as many as it has) and as many as before afterwards.

    Left there, they would wait by spinning and take the cores from the library's.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
