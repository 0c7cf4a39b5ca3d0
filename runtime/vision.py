"""The vision tower of an artefact: patches of images and frames in, rows of the text model's width out.

It runs as a stage of its own, once for each prompt, before the text model sees the prompt: on the native library where it
can, elsewhere region by region on engine `fx`.
"""

from __future__ import annotations

import torch

from glmc.artifact import Artifact
from glmc.errors import RequestOutOfBounds
from glmc.native.keep import Keep
from glmc.native.tower import Tower
from glmc.program import Program
from glmc.runtime.by_region import ANY, stage_of
from glmc.runtime.device import Device
from glmc.runtime.media.order import ends, order
from glmc.runtime.steps import Steps, check_weights
from glmc.runtime.threads import torch_threads
from glmc.runtime.transfer import to_device

STAGE = "vision"
CODES = "vq"
"""The stage that makes tokens of what the tower saw, in models that make images."""


class Vision:
    """The tower of an artefact, bound to its weights."""

    def __init__(self, artifact: Artifact, program: Program, weights: dict[str, torch.Tensor], kept: dict[str, Keep],
                 device: Device, threads: int) -> None:
        sizes = artifact.manifest["dims"]["tower"]
        self.merge, self.width = sizes["merge"], sizes["channels"] * sizes["frames"] * sizes["patch"] ** 2
        self.artifact, self.program, self.weights, self.kept = artifact, program, weights, kept
        self.device, self.dtype = device, getattr(torch, artifact.manifest["dtype"])
        self.threads = threads if artifact.manifest["engine"] == "native" else None
        self.tower: Tower | None = None
        if artifact.manifest["engine"] == "native" and program.engine is None:
            check_weights(program, weights, kept)
            self.tower = Tower(program, weights, kept, threads)
            return
        self.steps = self.by_region()

    def by_region(self) -> Steps:
        """The tower as regions that run one by one, in the form `ANY`."""
        return stage_of(self.artifact, self.program, self.weights, self.kept, self.device)

    def __call__(self, pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """pixels float32 [P, values of a patch], grid int64 [F, 3], one row an image or frame -> [M, hidden of the text model]
        in the dtype of its activations, on its device; M = P / merge^2. Raises RequestOutOfBounds where they do not fit.
        """
        check(pixels, grid, self.merge, self.width)
        if self.tower is not None:
            return self.tower.run(pixels.float().contiguous(), order(grid, self.merge), ends(grid), grid)
        with torch.no_grad(), torch_threads(self.threads):
            return self.steps.run(ANY, self.named(pixels, grid), True)

    def named(self, pixels: torch.Tensor, grid: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the tower's program reads, by name."""
        given = {"pixels": pixels.to(self.dtype), "positions": order(grid, self.merge), "ends": ends(grid), "grid": grid}
        return {f"input:{name}": to_device(tensor.contiguous(), self.device.torch) for name, tensor in given.items()}


def check(pixels: torch.Tensor, grid: torch.Tensor, merge: int, width: int) -> None:
    """Refuse what no tower takes. Raises RequestOutOfBounds."""
    shaped = grid.dim() == 2 and grid.shape[1] == 3 and len(grid) > 0
    if not shaped or (grid[:, 0] != 1).any() or (grid < 1).any() or (grid[:, 1:] % merge).any():
        raise RequestOutOfBounds("the grid of patches is none", field="grid", found=grid.tolist(),
                                 expected=f"[images, 3], of one frame each, heights and widths multiples of {merge}")
    if list(pixels.shape) != [int(grid.prod(1).sum()), width]:
        raise RequestOutOfBounds("the pixels do not fit their grid", field="pixels", found=list(pixels.shape),
                                 expected=[int(grid.prod(1).sum()), width])
