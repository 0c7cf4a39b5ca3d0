"""One region by itself on the native library, its cache copied in and out: for comparing and proving, not for speed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from glmc.native.cache import PANEL, Cache, parts_of
from glmc.native.compose import alone
from glmc.native.executor import Executor
from glmc.native.keep import Keep
from glmc.native.lower import lowered
from glmc.native.tower import slots_of
from glmc.program import Region, Spec

Given = dict[str, torch.Tensor]


def alone_with(region: Region, kept: dict[str, Keep]) -> Callable[[list[torch.Tensor]], Sequence[torch.Tensor]]:
    """A region whose weights are kept as `kept` says, by the region's own names for them."""
    piece = lowered(region)
    flat = alone(piece)
    pinned = list(flat.values.values())
    per = math.lcm(*(call.per for call in piece.calls))
    vision = region.kind.startswith("vision")

    def call(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        given = {name: tensor for (name, _, _), tensor in zip(region.inputs, inputs, strict=True)}
        weights = {name: given[name] for name, role, _ in region.inputs if role == "weight"}
        cache, caches = None, {name: given[name] for name, role, _ in region.inputs if role == "cache"}
        lead = _lead(region, given)
        count = math.prod(lead)
        if caches:
            parts = parts_of({name: spec for name, role, spec in region.inputs if role == "cache"})
            some = next(iter(caches.values()))
            cache = Cache(1, len(some), some.shape[1], parts, some.dtype)
            cache.fill(caches)
        told = _of_images(given, count) if vision else _of_text(given, *lead)
        room = -(-told.pop("room") // (PANEL * per)) * PANEL * per if vision else count
        executor = Executor(flat.items, flat.widths, weights, kept, cache, room, 1, pinned)
        for name in piece.inputs:
            row, whole = executor.rows(flat.values[name], count), given[name].reshape(count, -1)
            row.copy_(whole.view(torch.float32) if whole.dtype == torch.int32 else whole)
        executor.run(which=torch.zeros(0, dtype=torch.int64), logits=None, **told)
        if cache is not None:
            cache.copy_out(caches)
        rows: dict[int | None, int] = {reg: count // one.per for one in piece.calls for reg in one.writes}
        return [_result(spec, executor, given, flat.values.get(str(i)), rows.get(reg, count), (rows.get(reg, count),) if vision
                        else lead) for i, (spec, reg) in enumerate(zip(region.outputs, piece.outputs, strict=True))]

    return call


def _lead(region: Region, given: Given) -> tuple[int, ...]:
    """(rows, new tokens) of a text model, (patches,) of a tower."""
    if region.kind.startswith("vision"):
        return next((len(given[name]),) for name, role, spec in region.inputs if role == "value" and len(spec.shape) == 2)
    return next(tuple(given[name].shape[:2]) for name, _, spec in region.inputs if spec.shape[:2] == ("B", "S"))


def _of_images(given: Given, count: int) -> dict:
    """What a step of a tower is told. A region that does not ask for images has one."""
    ends = given.get("ends", torch.tensor([0, count])).long()
    slots, room = slots_of(ends)
    none = torch.zeros(count, dtype=torch.int64)
    turns = given["positions"].T.contiguous() if "positions" in given else None
    return {"ids": none, "positions": slots, "sequences": none, "turns": turns, "ends": ends, "grid": given.get("grid"),
            "room": room}


def _of_text(given: Given, batch: int, tokens: int) -> dict:
    """What a step of a text model is told."""
    none = torch.zeros(batch * tokens, dtype=torch.int64)
    where = given.get("where", given.get("positions", none)).reshape(-1).contiguous()
    told = {"ids": given.get("input_ids", none).reshape(-1).contiguous(), "positions": where,
            "sequences": torch.arange(batch).repeat_interleave(tokens)}
    if "positions" in given and given["positions"].dim() == 3:
        told["turns"] = given["positions"].flatten(1).contiguous()
    if "media" in given:
        told |= {"media": given["media"].reshape(-1).contiguous(), "features": given["features"].float().contiguous()}
    return told


def _result(spec: Spec, executor: Executor, given: Given, reg: int | None, rows: int, lead: tuple[int, ...]) -> torch.Tensor:
    if reg is None:  # the mask, which native attention does without
        return given["slots"] <= given.get("where", given["positions"])[:, None, :, None]
    found = executor.rows(reg, rows).reshape(*lead, -1)
    return found.view(torch.int32) if spec.dtype == "int32" else found.to(getattr(torch, spec.dtype))
