"""Numeric proof of the native lowering: each distinct region, as the library runs it, against its own text in float32.

The weights are random and in the forms that the artefact will have; the text is run on what those forms hold, so that what is
judged is the code and not the rounding of weights. In float32 the worst error may be 1e-4 of the largest value; in bfloat16
twice that of the text run in bfloat16, plus one rounding step; where weights are multiplied as whole numbers activations are
rounded too, in groups of 32 to 8 bits, and 0.03 is added. Experts are chosen by the correction alone, and slots by the length
of their keys, so that no near tie decides. Latent attention is run over few new tokens and over so many that it opens its rows;
with an indexer over contexts that it looks at whole and over longer ones. A vision tower is run over one image and over several
of unequal grids.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any

import torch

from glmc.errors import NumericError
from glmc.native.alone import alone_with
from glmc.native.calls import Weight
from glmc.native.compose import whole
from glmc.native.keep import Keep
from glmc.native.lower import lowered
from glmc.passes.images import GRIDS, of_images, sizes_of_images
from glmc.program import Program, Region, Spec
from glmc.region import Bound

FLOAT32, QUANTISED = 1e-4, 0.03
MOST = 1 << 28
"""The most elements of a region's weights; a region with more is proved with fewer experts, or not, and says so."""
_SHAPES = ({"B": 1, "S": 1, "L": 300, "M": 5}, {"B": 1, "S": 7, "L": 270, "M": 5}, {"B": 3, "S": 1, "L": 33, "M": 5})
_DRAWS = 16
_STEP = 1.012
"""From one cached key of an indexer to the next larger: no rounding turns the choice among them."""


@dataclass(frozen=True)
class RegionProof:
    """Worst errors over all shapes, relative to the largest exact value, and what they may be."""

    region: str
    native_error: float
    text_error: float
    limit: float
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


@torch.no_grad()
def prove_native(program: Program, keeps: dict[str, Keep]) -> list[RegionProof]:
    """Prove each distinct region, and that all of them make one list of calls. Raises NumericError, InternalError."""
    whole(program)
    found: dict[str, RegionProof] = {}
    for step in program.steps:
        if step.region not in found:
            region = program.regions[step.region]
            mine = {local: keeps[name.removeprefix("weight:")]
                    for name, (local, role, _) in zip(step.inputs, region.inputs, strict=True) if role == "weight"}
            found[step.region] = _prove(region, mine)
    return list(found.values())


def _prove(region: Region, keeps: dict[str, Keep]) -> RegionProof:
    note = None
    if sum(math.prod(k.sizes) for k in keeps.values()) > MOST:
        smaller = _fewer_experts(region, keeps)
        if smaller is None:
            return RegionProof(region.name, 0.0, 0.0, 0.0, f"not replayed: more than {MOST} elements of weights")
        region, keeps, note = smaller
    draw = torch.Generator().manual_seed(11)
    weights = {name: weight(name, keep, region, draw) for name, keep in keeps.items()}
    wide, low = widened(region), any(spec.dtype == "bfloat16" for _, _, spec in region.inputs)
    quantised = any(k.rounds for k in keeps.values())
    worst = RegionProof(region.name, 0.0, 0.0, FLOAT32, note)
    held = {n: keeps[n].held(w) for n, w in weights.items()}
    for sizes in _shapes(region):
        given = {name: input_for(name, spec, sizes, draw) for name, role, spec in region.inputs if role != "weight"}
        if "index" in given:
            clear = clear_choices(wide, {**given, **held}, draw)
            given |= {name: tensor.to(given[name].dtype) for name, tensor in clear.items()}
        exact = run(Bound(wide, "cpu"), wide, {**given, **held})
        text = run(Bound(region, "cpu"), region, {**given, **held}) if low else exact
        ours = run(lambda *t, keeps=keeps: alone_with(region, keeps)(list(t)), region, {**given, **weights})
        scales = [max(float(e.abs().max()), 1e-6) for e in exact]
        errors = [max((apart(a, e) / s for a, e, s in zip(side, exact, scales, strict=True)), default=0.0)
                  for side in (ours, text)]
        limit = FLOAT32 if not low else 2 * errors[1] + torch.finfo(torch.bfloat16).eps
        limit += QUANTISED if quantised else 0.0
        if not errors[0] <= limit:
            raise NumericError("the native code of a region is not the equal of its text", field=region.name,
                               expected=f"at most {limit:.3g} at {sizes}", found=f"{errors[0]:.3g}")
        if errors[0] >= worst.native_error:
            worst = RegionProof(region.name, errors[0], errors[1], limit, note)
    return worst


def _shapes(region: Region) -> list[dict[str, int]]:
    """Rows, new tokens and slots at which a region is run, and rows of features that a prompt's images have."""
    if region.kind.startswith("vision"):
        return sizes_of_images(region)
    latent = next((c for c in lowered(region).calls if c.kernel == "latent_attention"), None)
    if latent is None:
        return list(_SHAPES)
    top, opens = latent.n[14], latent.n[16]
    made = [{**s, "L": max(s["L"], top + 40)} if top else s for s in _SHAPES]
    if top:  # contexts that the indexer chooses all of, to the last slot
        made += [{"B": 2, "S": 1, "L": top}, {"B": 1, "S": min(5, top), "L": top}]
    if opens and (not top or opens + 3 <= top):  # tokens that look at chosen slots do not open
        made.append({"B": 1, "S": opens + 3, "L": max(opens + 40, top)})
    return made


def apart(found: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest difference; infinite where something is not a number."""
    gap = (found.float() - exact).abs()
    return math.inf if gap.isnan().any() else float(gap.max()) if gap.numel() else 0.0


def run(call: Any, region: Region, values: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The float results, and the caches as they are afterwards."""
    given = [values[name].clone().to(getattr(torch, spec.dtype)) if role != "weight" else values[name]
             for name, role, spec in region.inputs]
    given = [t.to(getattr(torch, spec.dtype)) if role == "weight" and isinstance(call, Bound) else t
             for t, (_, role, spec) in zip(given, region.inputs, strict=True)]
    made = [t for t in call(*given) if t.is_floating_point()]
    return made + [t for t, (_, role, _) in zip(given, region.inputs, strict=True) if role == "cache"]


def widened(region: Region) -> Region:
    """The same text in float32."""
    def wide(spec: Spec) -> Spec:
        return Spec("float32" if spec.dtype == "bfloat16" else spec.dtype, spec.shape)
    return Region(region.name, tuple((n, r, wide(s)) for n, r, s in region.inputs), tuple(map(wide, region.outputs)),
                  tuple(line.replace("torch.bfloat16", "torch.float32") for line in region.body))


def weight(name: str, keep: Keep, region: Region, draw: torch.Generator) -> torch.Tensor:
    """A random weight of a region as `keep` stores it: a correction of routing decides, norms are near 1."""
    from glmc.checkpoint.tensor_bytes import torch_dtype

    drawn = torch.randn(keep.sizes, generator=draw)
    if any("glmc.moe_route(" in line and name in line for line in region.body):
        drawn = 100.0 * torch.randperm(keep.sizes[0], generator=draw).float()
    elif "norm" in name:
        drawn = 1 + 0.3 * drawn
    elif len(keep.sizes) == 1:
        drawn = 0.3 * drawn
    elif keep.form != "rows":
        drawn *= keep.sizes[-1] ** -0.5 if len(keep.sizes) < 4 else math.prod(keep.sizes[1:]) ** -0.5
    dtype, shape = keep.stored()
    out = torch.empty(shape, dtype=torch_dtype(dtype))
    if keep.packed:
        keep.pack(drawn, out)
        return out
    # A vector holds what the published dtype can.
    return out.copy_(drawn.to(getattr(torch, keep.dtype)))


def input_for(name: str, spec: Spec, sizes: dict[str, Any], draw: torch.Generator) -> torch.Tensor:
    shape = [int(sizes.get(str(s), s)) for s in spec.shape]
    if GRIDS in sizes and not spec.dtype.startswith(("float", "bfloat")):
        return of_images(name, sizes[GRIDS], draw)
    if name == "slots":
        return torch.arange(sizes["L"])
    if name == "media":
        return torch.randint(-1, sizes["M"], shape, generator=draw)
    if name == "positions" and len(shape) == 3:  # of several axes
        return torch.randint(0, 2000, shape, generator=draw)
    if name in ("positions", "where"):  # the last slots, and for rows of a batch others each
        first = [max(0, sizes["L"] - sizes["S"] - 9 * b) for b in range(sizes["B"])]
        return torch.tensor(first).unsqueeze(1) + torch.arange(sizes["S"])
    if spec.dtype == "int32":  # what an indexer chose: every slot that is there, or as many of the visible ones
        return torch.stack([torch.stack([_chosen(int(p), shape[-1], draw) for p in row]) for row in input_for(
            "positions", Spec("int64", ("B", "S")), sizes, draw)])
    if spec.dtype == "int64":
        return torch.randint(0, 64, shape, generator=draw)
    if spec.dtype == "bool":
        return torch.arange(sizes["L"]) <= input_for("positions", Spec("int64", ("B", "S")), sizes, draw).view(
            sizes["B"], 1, sizes["S"], 1)
    return torch.randn(shape, generator=draw).to(getattr(torch, spec.dtype))


def clear_choices(region: Region, values: dict[str, torch.Tensor], draw: torch.Generator) -> dict[str, torch.Tensor]:
    """New tokens and cached keys of an indexer for which no rounding turns its choice.

    The cached keys of a row point all in one direction and differ in length, so that their scores are in the order of the
    lengths; they are longer than those of new tokens. Of many tokens drawn those are taken whose heads agree best that more is
    better.
    """
    call = next(m for line in region.body if (m := re.search(r"glmc\.lightning_indexer\((\w+), \w+, (\w+),", line)))
    flow = next(name for name, role, spec in region.inputs if role == "value" and spec.dtype == "float32")
    rows, slots, _, width = values["index"].shape
    way = torch.randn(rows, width, generator=draw)
    best, chosen = torch.full(values[flow].shape[:2], -math.inf), values[flow]
    for _ in range(_DRAWS):
        drawn = torch.randn(values[flow].shape, generator=draw)
        query, shares = _until(region, {**values, flow: drawn}, call.groups())
        parts = shares * torch.relu(torch.einsum("bshd,bd->bsh", query, way))
        agreed = parts.sum(-1) / parts.abs().sum(-1).clamp_min(1e-9)
        chosen, best = chosen.where((agreed <= best).unsqueeze(-1), drawn), agreed.maximum(best)
    order = torch.stack([torch.randperm(slots, generator=draw) for _ in range(rows)])
    return {flow: chosen, "index": way[:, None, None, :] * (8 * _STEP ** order.double()).float()[:, :, None, None]}


def _until(region: Region, values: dict[str, torch.Tensor], names: tuple[str, ...]) -> list[torch.Tensor]:
    """What the region's text makes under some names, no further than that."""
    given = [values[name].clone().to(getattr(torch, spec.dtype)) for name, _, spec in region.inputs]
    seen: dict[str, torch.Tensor] = {}
    for name, value in Bound(region, "cpu").lines(*given):
        seen[name] = value
        if all(one in seen for one in names):
            break
    return [seen[name] for name in names]


def _chosen(position: int, top: int, draw: torch.Generator) -> torch.Tensor:
    if position < top:
        return torch.arange(top, dtype=torch.int32)
    return torch.randperm(position + 1, generator=draw)[:top].sort().values.int()


def _fewer_experts(region: Region, keeps: dict[str, Keep]) -> tuple[Region, dict[str, Keep], str] | None:
    """The region with as many experts as fit, if its experts are what is large."""
    calls = lowered(region).calls
    call = next((c for c in calls if c.kernel == "moe_route"), None)
    if call is None:
        return None
    count, groups, _, top = call.n[:4]
    each = {p.name for c in calls if c is call or c.kernel == "moe_experts" or c.writes == (call.p[0].reg,)
            for p in c.p if isinstance(p, Weight)}
    few = groups * max(2, -(-2 * top // groups))
    if few >= count:
        return None
    less = {n: dataclasses.replace(k, sizes=(few, *k.sizes[1:])) if n in each else k for n, k in keeps.items()}
    if sum(math.prod(k.sizes) for k in less.values()) > MOST:
        return None
    inputs = tuple((n, r, Spec(s.dtype, (few, *s.shape[1:])) if n in each else s)
                   for n, r, s in region.inputs)
    return dataclasses.replace(region, inputs=inputs), less, f"with {few} experts of {count}"
