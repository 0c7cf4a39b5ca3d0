"""The probe as a process of its own, with the contenders' threads."""

from __future__ import annotations

import time
from typing import Any


class Probing:
    """Answers `probe`."""

    compiles, vocabulary = False, None

    def __init__(self, threads: int, device: str) -> None:
        began = time.perf_counter()
        import torch

        torch.set_num_threads(threads)
        self.device = device
        self.phases = {"import": time.perf_counter() - began}
        self.facts = {"threads": torch.get_num_threads(), "device": self.device}

    def probe(self) -> dict[str, Any]:
        from glmc.bench.probe import probe

        return probe(self.device)
