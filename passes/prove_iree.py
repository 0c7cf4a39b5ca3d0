"""Numeric proof of what IREE compiled: each distinct region in each form, on its virtual machine, against the region's text.

Weights and inputs are drawn as for the native library (`glmc.passes.prove_native`), and the same errors are allowed. The caches
are compared as they are afterwards: they must have been written in place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from glmc.errors import NumericError
from glmc.iree import Loaded
from glmc.native.keep import Keep
from glmc.passes.lower import Bounds
from glmc.passes.prove_native import FLOAT32, MOST, RegionProof, apart, clear_choices, input_for, run, weight, widened
from glmc.program import FORMS, Program, Region
from glmc.region import Bound

_FREE = {"B": 3, "S": 7, "M": 5}
"""Rows, new tokens and rows of features where a form leaves them open."""
_SLOTS = 41


@torch.no_grad()
def prove_iree(program: Program, panels: Mapping[str, Mapping[str, tuple[int, ...]]], bounds: Bounds, folder: Path,
               ) -> list[RegionProof]:
    """Prove each distinct region in each of the bounds' forms, compiled in `folder`. Raises NumericError."""
    return [_prove(region, form, panels[name], max(bounds.least + 9, _SLOTS), folder / f"{name}.{form}.vmfb")
            for name, region in program.regions.items() for form in bounds.forms()]


def _prove(region: Region, form: str, panels: Mapping[str, tuple[int, ...]], slots: int, file: Path) -> RegionProof:
    name = f"{region.name}.{form}"
    specs = {local: spec for local, role, spec in region.inputs if role == "weight"}
    if sum(math.prod(map(int, spec.shape)) for spec in specs.values()) > MOST:
        return RegionProof(name, 0.0, 0.0, 0.0, f"not replayed: more than {MOST} elements of weights")
    draw = torch.Generator().manual_seed(11)
    sizes = {**_FREE, "L": slots, **FORMS[form]}
    given = {local: input_for(local, spec, sizes, draw) for local, role, spec in region.inputs if role != "weight"}
    plain, kept = {}, {}
    for local, spec in specs.items():
        shape = tuple(map(int, spec.shape))
        keep = Keep("vector" if len(shape) == 1 else "F32", shape, spec.dtype)
        packed = weight(local, keep, region, draw)
        plain[local] = keep.plain(packed)
        kept[local] = packed if local in panels else plain[local]
    wide, low = widened(region), any(spec.dtype == "bfloat16" for _, _, spec in region.inputs)
    if "index" in given:
        clear = clear_choices(wide, {**given, **{n: t.float() for n, t in plain.items()}}, draw)
        given |= {local: tensor.to(given[local].dtype) for local, tensor in clear.items()}
    exact = run(Bound(wide, "cpu"), wide, {**given, **plain})
    text = run(Bound(region, "cpu"), region, {**given, **plain}) if low else exact
    call = Loaded(file.read_bytes(), region, file.name)
    ours = run(lambda *tensors: call(list(tensors)), region, {**given, **kept})
    scales = [max(float(e.abs().max()), 1e-6) for e in exact]
    errors = [max((apart(a, e) / s for a, e, s in zip(side, exact, scales, strict=True)), default=0.0) for side in (ours, text)]
    limit = FLOAT32 if not low else 2 * errors[1] + torch.finfo(torch.bfloat16).eps
    if not errors[0] <= limit:
        raise NumericError("what IREE compiled of a region is not the equal of its text", field=name,
                           expected=f"at most {limit:.3g} at {sizes}", found=f"{errors[0]:.3g}")
    return RegionProof(name, errors[0], errors[1], limit)
