"""Give a region to the AOTInductor engine: trace its text again in one form and compile it to a shared library.

The library holds code only: every weight is an argument, so one compilation serves all layers of the form. Fused ops and
linears go through the CPU kernels' own torch code, which Inductor turns into loops.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from glmc.errors import InternalError
from glmc.program import FORMS, Region, Spec, held_slots
from glmc.region import Bound

# Ops of the graph that a CPU kernel runs better than the compiler's own choice.
CPU_KERNELS = {"aten.linear.default": "glmc.linear"}


@dataclass(frozen=True)
class Bounds:
    """The largest rows and slots that compiled code may meet.

    Caches hold more slots than max_len (`held_slots`), so that a view of the filled ones is never the whole cache: the compiler
    would otherwise guard against the one length at which it is contiguous. least: the fewest slots that a view may have; an
    indexer chooses a fixed number of them.
    """

    max_batch: int
    max_len: int
    least: int = 2

    @property
    def slots(self) -> int:
        """The most slots that a view may have."""
        return max(self.max_len, self.least)

    def forms(self) -> list[str]:
        """The forms that requests within these bounds need."""
        return ["decode", "prefill"] + (["decode_rows"] if self.max_batch > 1 else [])


class _Module(nn.Module):
    def __init__(self, region: Region) -> None:
        super().__init__()
        self.bound = Bound(region, "cpu", replace=CPU_KERNELS)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.bound(*inputs)


def sample(spec: Spec, role: str, sizes: dict[str, int], bounds: Bounds, views: bool = True) -> torch.Tensor:
    """A zero tensor of a region's input; a cache is a view of its first slots, with the strides it has when running."""
    shape, dtype = spec.at(sizes), getattr(torch, spec.dtype)
    if role == "cache" and views:
        return torch.empty([shape[0], held_slots(bounds.slots), *shape[2:]], dtype=dtype)[:, : shape[1]]
    return torch.empty(shape, dtype=dtype)


def export(region: Region, form: str, bounds: Bounds, module: nn.Module | None = None,
           shapes: Mapping[str, tuple[int, ...]] | None = None):
    """The region in one form as an exported program, and its sample inputs.

    module: what is exported in the place of the region's CPU code, whose caches are then whole tensors. shapes: of weights that
    are kept otherwise than the text has them.
    """
    fixed = FORMS[form]
    sizes = {"B": 3, "S": 5, "L": max(11, bounds.least), "M": 7} | fixed
    unknown = {s for _, _, spec in region.inputs for s in spec.shape if isinstance(s, str)} - set(sizes)
    if unknown:
        raise InternalError("a region's input has a size that is not a letter", field=region.name, found=unknown)
    most = {"B": max(bounds.max_batch, 3), "S": bounds.max_len, "L": bounds.slots, "M": max(bounds.max_len, 7)}
    least = {"B": 2, "S": 2, "L": bounds.least, "M": 2}
    free = {k: torch.export.Dim(k, min=least[k], max=most[k]) for k in most if k not in fixed}
    dynamic = tuple({i: free[s] for i, s in enumerate(spec.shape) if s in free} for _, _, spec in region.inputs)
    with torch._subclasses.FakeTensorMode():
        kept = {name: Spec(spec.dtype, (shapes or {}).get(name, spec.shape)) for name, _, spec in region.inputs}
        inputs = tuple(sample(kept[name], role, sizes, bounds, module is None) for name, role, _ in region.inputs)
    with torch.no_grad():
        exported = torch.export.export(module or _Module(region), inputs, dynamic_shapes=(dynamic,), strict=False)
    return exported, inputs


def compile_region(region: Region, form: str, bounds: Bounds, out: Path) -> None:
    """Compile the region in one form with AOTInductor and put the shared library at `out`."""
    exported, inputs = export(region, form, bounds)
    options: dict[str, Any] = {"aot_inductor.compile_wrapper_opt_level": "O0"}
    if FORMS[form].get("S") == 1:
        # Rows must be finished before a product reads them: inlined, a norm would be computed once an output row.
        # And loops over one row are not worth a second thread: each would cost a barrier.
        options |= {"realize_opcount_threshold": 0, "realize_reads_threshold": 0, "cpp.min_chunk_size": 8192}
    with tempfile.TemporaryDirectory(prefix="region-", dir=out.parent) as scratch:
        target = os.path.join(scratch, "region.so")
        made = torch._inductor.aot_compile(
            exported.module(), inputs, options={**options, "aot_inductor.output_path": target})
        if not isinstance(made, str):
            raise InternalError("AOTInductor returned no library", field=region.name, found=type(made).__name__)
        shutil.copyfile(made, out)
        # Ops that compiled code calls by name are listed beside the library, under the library's own stem.
        for externs in Path(scratch).glob("**/*.wrapper.json"):
            shutil.copyfile(externs, out.with_suffix(".json"))
