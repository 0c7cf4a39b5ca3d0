"""Checkpoints of GLM-Image's pipeline to measure with: a random diffusion transformer of any size, everything else tiny."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from report import ROOT


def write(folder: Path, transformer: dict[str, Any]) -> None:
    """Write a pipeline into `folder`. transformer: what differs from the tests' tiny one."""
    sys.path.insert(0, str(ROOT / "tests"))
    import picturing
    import torch

    from glmc import dit_part

    published, _ = picturing.published()
    folder.mkdir(parents=True)
    for part in published.iterdir():
        if part.name != "transformer":
            (folder / part.name).symlink_to(part)
    made = dit_part.build({**picturing.TRANSFORMER, **transformer}, torch.float32, "cpu")
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape) * (parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.1))
    made.save_pretrained(folder / "transformer")
