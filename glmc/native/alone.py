"""One region by itself on the native library, its cache copied in and out: for comparing and proving, not for speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from glmc.native.cache import Cache, parts_of
from glmc.native.compose import alone
from glmc.native.executor import Executor
from glmc.native.keep import Keep
from glmc.native.lower import lowered
from glmc.program import Region, Spec


def alone_with(region: Region, kept: dict[str, Keep]) -> Callable[[list[torch.Tensor]], Sequence[torch.Tensor]]:
    """A region whose weights are kept as `kept` says, by the region's own names for them."""
    piece = lowered(region)
    flat = alone(piece)
    pinned = list(flat.values.values())

    def call(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        given = {name: tensor for (name, _, _), tensor in zip(region.inputs, inputs, strict=True)}
        weights = {name: given[name] for name, role, _ in region.inputs if role == "weight"}
        rows = next(given[name] for name, _, spec in region.inputs if spec.shape[:2] == ("B", "S"))
        batch, tokens = rows.shape[:2]
        cache, caches = None, {name: given[name] for name, role, _ in region.inputs if role == "cache"}
        if caches:
            parts = parts_of({name: spec for name, role, spec in region.inputs if role == "cache"})
            some = next(iter(caches.values()))
            cache = Cache(1, batch, some.shape[1], parts, some.dtype)
            cache.fill(caches)
        executor = Executor(flat.items, flat.widths, weights, kept, cache, batch * tokens, 1, pinned)
        for name in piece.inputs:
            row, whole = executor.rows(flat.values[name], batch * tokens), given[name].reshape(batch * tokens, -1)
            row.copy_(whole.view(torch.float32) if whole.dtype == torch.int32 else whole)
        none = torch.zeros(batch * tokens, dtype=torch.int64)
        ids, positions = (given.get(name, none).reshape(-1).contiguous() for name in ("input_ids", "positions"))
        executor.run(ids, positions, torch.arange(batch).repeat_interleave(tokens), none[:0], None)
        if cache is not None:
            cache.copy_out(caches)
        return [_result(spec, executor, flat.values.get(str(i)), given, batch, tokens) for i, spec in enumerate(region.outputs)]

    return call


def _result(spec: Spec, executor: Executor, reg: int | None, given: dict[str, torch.Tensor], batch: int, tokens: int,
            ) -> torch.Tensor:
    if reg is None:  # the mask, which native attention does without
        return given["slots"] <= given["positions"].reshape(batch, 1, tokens, 1)
    found = executor.rows(reg, batch * tokens).reshape(batch, tokens, -1)
    return found.view(torch.int32) if spec.dtype == "int32" else found.to(getattr(torch, spec.dtype))
