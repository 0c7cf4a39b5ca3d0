"""How each weight of a program is kept: in which form, what that weighs, and back again. For the native library all weights
have one; for GPUs those matrices that stay in a checkpoint's own codes, and the others are as the regions' text has them."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from glmc.errors import DamagedArtifact, InternalError, UnsupportedTarget
from glmc.native import panels, split
from glmc.native.cache import caches_of
from glmc.native.calls import Lowered, Need, Refused
from glmc.native.lower import lowered
from glmc.program import Program, Region, Spec

if TYPE_CHECKING:
    import torch

    from glmc.kernels.dequantise import Coded

Made = TypeVar("Made")
QUANTS = {"int8": "Q8", "int4": "Q4"}
"""What `--quant` may be besides none -> the form of a matrix."""
_ROWS = {"float32": "F32", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Keep:
    """One weight. form: "rows" (a table as it is), "vector" (float32), or one of `panels.FORMS`. sizes: the published ones; the
    kernel [N, C, ...] of a convolution is a matrix [N, rest]."""

    form: str
    sizes: tuple[int, ...]
    dtype: str
    halves: bool = False
    split: split.Split | None = None
    """Of latent attention's matrix: heads, plain channels of a key, channels of a value."""
    gpu: bool = False
    """Whether it is laid out as kernels of GPUs read it (glmc.kernels.dequantise), and not in panels."""
    last: bool = False
    """Whether a kernel's channels stand behind its places in the matrix."""

    @property
    def matrix(self) -> tuple[int, ...]:
        """The sizes of what is packed."""
        return self.sizes if len(self.sizes) < 4 else (self.sizes[0], math.prod(self.sizes[1:]))

    @property
    def packed(self) -> bool:
        return self.form in panels.FORMS

    @property
    def number(self) -> int:
        """What a call is told of the form, as with_form of forms.hpp counts."""
        if not self.packed:
            return {"float32": 0, "bfloat16": 1}[self.dtype]
        return panels.FORMS.index(self.form) + (len(panels.CODED) if self.exact else 0)

    @property
    def exact(self) -> bool:
        """Whether a checkpoint's codes are multiplied as float32, with activations that nothing rounds."""
        return self.form in panels.CODED and self.dtype == "float32"

    @property
    def rounds(self) -> bool:
        """Whether activations become bytes with a scale for each 32."""
        return self.form in ("Q8", "Q4") or (self.form in ("MX4", "NV4") and not self.exact)

    def stored(self) -> tuple[str, tuple[int, ...]]:
        """(dtype as safetensors names it, shape) in the artefact."""
        if self.gpu:
            from glmc.kernels.dequantise import stored

            return stored(self.form, self.sizes)
        if self.split:
            return split.shape(self.form, self.split, self.sizes[1])
        if self.packed:
            return panels.shape(self.form, self.matrix, self.halves)
        return ("F32" if self.form == "vector" else _ROWS[self.dtype]), self.sizes

    def fits(self, tensor: torch.Tensor) -> bool:
        from glmc.checkpoint.tensor_bytes import dtype_name

        return (dtype_name(tensor.dtype), tuple(tensor.shape)) == self.stored()

    def plain(self, tensor: torch.Tensor) -> torch.Tensor:
        """The published weight again, but for what the form rounded, in its own dtype."""
        import torch

        return self.held(tensor).to(getattr(torch, self.dtype))

    def held(self, tensor: torch.Tensor) -> torch.Tensor:
        """What is multiplied by: float32 of a packed matrix, anything else as it is."""
        if self.gpu:
            import torch

            from glmc.kernels.dequantise import Coded
            from glmc.kernels.dequantise.cpu import run

            return run(Coded.of(self.form, self.sizes, tensor), torch.float32)
        if self.split:
            return split.unpack(tensor, self.form, self.split, self.sizes)
        if not self.packed:
            return tensor
        found = panels.unpack(tensor, self.form, self.matrix, self.halves)
        if self.last:
            return found.unflatten(1, (*self.sizes[2:], self.sizes[1])).movedim(-1, 1)
        return found.reshape(self.sizes)

    def bound(self, tensor: torch.Tensor) -> torch.Tensor | Coded:
        """What a region's code is called with."""
        if not self.gpu:
            return tensor
        from glmc.kernels.dequantise import Coded

        return Coded.of(self.form, self.sizes, tensor)

    def put(self, codes: torch.Tensor, scales: torch.Tensor, factors: torch.Tensor, out: torch.Tensor) -> None:
        """Write a quantised matrix, as `glmc.checkpoint.coded.codes_of` gives it, into `out`. Raises WeightMismatch."""
        if self.gpu:
            from glmc.kernels.dequantise import fill

            fill(self.form, codes, scales, factors, out)
        else:
            panels.pack_codes(self.form, codes, scales, factors, (1, panels.F8_GROUP), out=out, halves=self.halves)

    def pack(self, matrix: torch.Tensor, out: torch.Tensor) -> None:
        """Write the published matrix into `out`, which is as `stored` says."""
        if self.gpu:
            self._quantise(matrix, out)
        elif self.split:
            split.pack(matrix, self.form, self.split, out)
        elif matrix.dim() > 3:
            panels.pack((matrix.movedim(1, -1) if self.last else matrix).flatten(1), self.form, out)
        else:
            panels.pack(matrix, self.form, out, self.halves)

    def _quantise(self, matrix: torch.Tensor, out: torch.Tensor) -> None:
        """As `put`, of a matrix or of experts in floats."""
        import torch

        from glmc.kernels.dequantise import GROUPS
        from glmc.native.quantise import quantised

        if matrix.dim() == 3:
            for one, place in zip(matrix, out, strict=True):
                self._quantise(one, place)
            return
        width = matrix.shape[1]
        codes, scales, factor, _ = quantised(matrix, self.form)
        self.put(codes[:, :width if self.form == "F8" else width // 2], scales[:, :-(-width // GROUPS[self.form])],
                 torch.as_tensor(factor, dtype=torch.float32).expand(len(matrix)), out)

    def to_json(self) -> dict[str, Any]:
        found = {"form": self.form, "sizes": list(self.sizes), "dtype": self.dtype, "halves": self.halves}
        return found | ({"split": list(self.split)} if self.split else {}) | {
            name: True for name in ("gpu", "last") if getattr(self, name)}

    @staticmethod
    def from_json(data: Any) -> Keep:
        """Raises DamagedArtifact."""
        try:
            heads = data.get("split")
            kept = Keep(data["form"], tuple(map(int, data["sizes"])), data["dtype"], data["halves"], heads and tuple(heads),
                        data.get("gpu", False), data.get("last", False))
            if kept.form not in (panels.CODED if kept.gpu else ("rows", "vector", *panels.FORMS)) or kept.dtype not in _ROWS:
                raise ValueError(kept.form)
        except (KeyError, TypeError, ValueError) as fault:
            raise DamagedArtifact("the form of a weight cannot be read", file="program.json", field="kept",
                                  found=fault) from fault
        return kept


def kept_of(program: dict[str, Any], region: str | None = None) -> dict[str, Keep]:
    """What program.json says of its weights; of one region's by the region's own names. Raises DamagedArtifact."""
    data = program.get("kept")
    if not isinstance(data, dict) or not {"weights", "regions"} <= data.keys():
        raise DamagedArtifact("program.json does not say how weights are kept", file="program.json", field="kept")
    if region is None:
        return {name: Keep.from_json(one) for name, one in data["weights"].items()}
    return {name: Keep.from_json(one) for name, one in data["regions"].get(region, {}).items()}


def kept_json(programs: Iterable[Program], found: dict[str, Keep]) -> dict[str, Any]:
    """What program.json says: `weights` by name, and for each region its own names."""
    regions: dict[str, Any] = {}
    for part, step in ((program, step) for program in programs for step in program.steps if not step.moves):
        mine = regions.setdefault(step.region, {})
        for name, (local, role, _) in zip(step.inputs, part.regions[step.region].inputs, strict=True):
            if role == "weight" and name.removeprefix("weight:") in found:
                mine.setdefault(local, found[name.removeprefix("weight:")].to_json())
    return {"weights": {name: one.to_json() for name, one in found.items()}, "regions": regions}


def forms(program: Program, quant: str | None, sources: Mapping[str, str] = {}) -> dict[str, Keep]:
    """Weight -> how the native library is to have it. With int4 the head stays at int8, since its errors go straight into the
    logits, and so do latents, which are kept twice; routers stay float32.

    sources: weight -> the form of `panels.CODED` in which the checkpoint has it. A matrix is kept so, unless it is to be
    quantised otherwise or the model wants it in float32.

    Raises UnsupportedTarget where a region holds something that no native kernel does.
    """
    pieces = {name: _lowered(region) for name, region in program.regions.items()}
    if any(role == "cache" for region in program.regions.values() for _, role, _ in region.inputs):  # a tower has none
        _told(lambda: caches_of(program.regions.values()), "program")
    found: dict[str, tuple[Need, Spec, str]] = {}
    for step in program.steps:
        if step.moves:
            continue
        region = program.regions[step.region]
        for name, (local, role, spec) in zip(step.inputs, region.inputs, strict=True):
            if role != "weight":
                continue
            weight, need = name.removeprefix("weight:"), pieces[step.region].needs.get(local)
            if need is None:
                raise InternalError("a weight of a region is used by none of its calls", field=weight)
            before = found.get(weight)
            if before is not None and before[0] != need:
                kinds = {before[0].kind: before[0], need.kind: need}
                if set(kinds) != {"table", "matrix"}:
                    raise InternalError("a weight is wanted in two forms", field=weight, found=sorted(kinds))
                need = kinds["matrix"]  # a table is read from a matrix as well
            found[weight] = need, spec, "head" if "head" in (region.kind, before and before[2]) else region.kind
    wrong = {name: form for name, form in sources.items() if form not in panels.CODED}
    if wrong:
        raise InternalError("a checkpoint has a weight in an unknown form", field=min(wrong), found=wrong[min(wrong)],
                            expected=", ".join(panels.CODED))
    return {name: _keep(need, spec, kind, quant, sources.get(name)) for name, (need, spec, kind) in found.items()}


_LINEAR = {"aten.linear.default": (1,)}
_MATRICES = {**_LINEAR, "glmc.moe_experts": (3, 4)}
"""Ops whose kernels for GPUs take a coded matrix -> which of their arguments it is."""


def forms_for_gpu(program: Program, sources: Mapping[str, str], gpu: bool = True) -> dict[str, Keep]:
    """Of the weights that `sources` names with their form those that only products read, kept so for kernels of GPUs, or in
    panels for compilers that take them in plain products."""
    found: dict[str, Keep] = {}
    others: set[str] = set()
    products = {name: _products(region, _MATRICES if gpu else _LINEAR) for name, region in program.regions.items()}
    for step in program.steps:
        if step.moves:
            continue
        for name, (local, role, spec) in zip(step.inputs, program.regions[step.region].inputs, strict=True):
            weight = name.removeprefix("weight:")
            if role != "weight" or weight not in sources:
                continue
            if local not in products[step.region]:
                others.add(weight)
            found[weight] = Keep(sources[weight], tuple(int(s) for s in spec.shape), spec.dtype, gpu=gpu)
    return {weight: keep for weight, keep in found.items() if weight not in others}


def _products(region: Region, ops: Mapping[str, tuple[int, ...]]) -> set[str]:
    """The weights of a region that stand nowhere but as the matrix of a product."""
    matrices: set[str] = set()
    elsewhere: set[str] = set()
    for line in region.body:
        for call in ast.walk(ast.parse(line)):
            if isinstance(call, ast.Call):
                places = ops.get(ast.unparse(call.func), ())
                for number, argument in enumerate([*call.args, *(k.value for k in call.keywords)]):
                    names = {n.id for n in ast.walk(argument) if isinstance(n, ast.Name)}
                    (matrices if number in places and number < len(call.args) else elsewhere).update(names)
    return matrices - elsewhere


def coded(kept: Mapping[str, Keep]) -> dict[str, str]:
    """Of an artefact's weights those in a checkpoint's own codes: what `forms` was told of them."""
    return {name: keep.form for name, keep in kept.items() if keep.form in panels.CODED}


def _lowered(region: Region) -> Lowered:
    return _told(lambda: lowered(region), region.name)


def _told(make: Callable[[], Made], what: str) -> Made:
    """What `make` gives. Raises UnsupportedTarget with the reason where it is refused."""
    try:
        return make()
    except Refused as reason:
        raise UnsupportedTarget("the native CPU engine cannot run a part of this model", field=what, found=str(reason),
                                hint="--target cpu:aoti compiles it with AOTInductor") from reason


def _keep(need: Need, spec: Spec, kind: str, quant: str | None, source: str | None) -> Keep:
    sizes = tuple(int(s) for s in spec.shape)
    if need.kind in ("table", "vector"):
        return Keep("rows" if need.kind == "table" else "vector", sizes, spec.dtype)
    form = "F32" if need.wide else _ROWS[spec.dtype]
    if quant is not None and not need.wide:
        form = "Q8" if kind == "head" or need.split else QUANTS[quant]
    elif source is not None and not need.wide and not need.split and len(sizes) < 4:
        form = source
    return Keep(form, sizes, spec.dtype, need.halves, need.split, last=need.last)
