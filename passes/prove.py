"""Numeric proof: each distinct rewritten site, kernel against reference, on inputs chosen to break it.

Both are measured against the reference in float64. The kernel passes when its worst error is at most twice the reference's
own, plus one rounding step of the result; the worst errors go into the artefact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from glmc import kernels
from glmc.errors import NumericError
from glmc.graph import dtype_name
from glmc.passes.declare import load
from glmc.passes.match import Site
from glmc.target import Target

_SIZES = (3, 7)  # two values for every symbolic size: odd, unequal


@dataclass(frozen=True)
class Proof:
    """One distinct site: worst absolute errors against float64, relative to the largest result."""

    fusion: str
    shapes: dict[str, str]
    scalars: dict[str, Any]
    kernel_error: float
    reference_error: float
    places: int

    def to_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


def _inputs(site: Site, seed: int, spread: float) -> list[torch.Tensor]:
    """Normal inputs of the site's shapes, scaled by `spread`; cos and sin rows differ, so no symmetry hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    known: dict[str, int] = {}
    made = []
    for dtype, shape in site.describe().values():
        sizes = [s if isinstance(s, int) else known.setdefault(str(s), _SIZES[len(known) % 2] + len(known)) for s in shape]
        made.append((torch.randn(sizes, generator=generator, dtype=torch.float64) * spread).to(dtype))
    return made


def _errors(site: Site, inputs: list[torch.Tensor], target: Target) -> tuple[float, float, float]:
    """(kernel error, reference error, one rounding step), each relative to the largest float64 result."""
    reference = load(site.fusion).reference
    exact = _all(_in_float64(reference, inputs, site.scalars))
    scale = max(float(e.abs().max()) for e in exact) or 1.0

    def worst(results: Any) -> float:
        errors = [float((r.double() - e).abs().max()) for r, e in zip(_all(results), exact, strict=True)]
        return max(math.inf if math.isnan(e) else e for e in errors) / scale  # max() would lose a NaN

    kernel = kernels.load(site.fusion, target.machine).run(*inputs, **site.scalars)
    plain = reference(*inputs, **site.scalars)
    return worst(kernel), worst(plain), torch.finfo(inputs[0].dtype).eps


def _in_float64(reference: Any, inputs: list[torch.Tensor], scalars: dict[str, Any]) -> Any:
    """The reference with every float32 step taken in float64."""
    with _Widen():
        return reference(*[t.double() for t in inputs], **scalars)


class _Widen(torch.overrides.TorchFunctionMode):
    """Turns casts to float32 inside a reference into casts to float64."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        swapped = tuple(torch.float64 if a is torch.float32 else a for a in args)
        return func(*swapped, **(kwargs or {}))


def _all(results: Any) -> tuple[torch.Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


def prove(sites: list[Site], target: Target) -> list[Proof]:
    """Prove each distinct taken site. Raises NumericError where a kernel is worse than its reference allows."""
    distinct: dict[tuple, list[Site]] = {}
    for site in sites:
        shapes = tuple((k, dtype_name(d), tuple(map(str, s))) for k, (d, s) in site.describe().items())
        distinct.setdefault((site.fusion, shapes, tuple(site.scalars.items())), []).append(site)
    proofs = []
    for (fusion, shapes, scalars), group in distinct.items():
        worst: tuple[float, ...] = (0.0, 0.0, 0.0)
        for seed, spread in enumerate((1.0, 1e-3, 30.0)):
            worst = tuple(map(max, worst, _errors(group[0], _inputs(group[0], seed, spread), target)))
        kernel, plain, step = worst
        if not math.isfinite(kernel) or kernel > 2 * plain + step:
            raise NumericError(f"the kernel of {fusion} is not the reference's equal", field=group[0].place,
                               expected=f"at most {2 * plain + step:.3g}", found=f"{kernel:.3g}")
        proofs.append(Proof(fusion, {k: f"{d} [{', '.join(s)}]" for k, d, s in shapes}, dict(scalars),
                            kernel, plain, len(group)))
    return proofs
