"""`glmc plan`: the ledger, parameters, memory and roofline of a model, from its configuration alone."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

from glmc.checkpoint.components import read_config
from glmc.errors import UsageError
from glmc.forecast import forecast
from glmc.largest_media import largest_media, settings_of
from glmc.ledger import Ledger
from glmc.native.keep import forms
from glmc.native.tower import Tower
from glmc.runtime.media.settings import Settings
from glmc.survey import Progress, Survey, survey
from glmc.target import link as named_link
from glmc.target import named

_BYTES = {"float32": 4, "bfloat16": 2, "int64": 8, "bool": 1}


@dataclass(frozen=True)
class Plan:
    """The answer of `glmc.plan`. Bytes are bytes, rates are tokens a second at batch 1 after a short prompt."""

    model_type: str
    architecture: str
    layers: int
    parameters: dict[str, int]
    regions: dict[str, int]
    ledger: Ledger
    memory: dict[str, int]
    roofline: dict[str, Any]
    seconds: float
    notes: list[str]
    media: dict[str, Any] | None = None
    """The largest image and video, see `glmc.largest_media`; None for a model that takes none."""
    forecast: dict[str, Any] | None = None
    """What several ranks would take, see `glmc.forecast`; None for one rank."""
    pictured: dict[str, Any] = field(default_factory=dict, repr=False)
    """For the page of `--html`: `parts` as program.json has them, `texts` of regions, `drawing`. Not in the JSON."""

    def to_json(self) -> dict[str, Any]:
        told = {name: value for name, value in self.__dict__.items() if name != "pictured"}
        return {**told, "ledger": self.ledger.to_json(), "broken": self.ledger.broken}


def parameters(surveyed: Survey) -> dict[str, int]:
    """Total and active-per-token parameters: routed experts count by the share that a token visits."""
    dims = surveyed.dims
    computed = {f"{n}" for n in surveyed.weights if n.endswith("rotary_emb.inv_freq")}
    sizes = {n: math.prod(shape) for n, (_, shape) in surveyed.weights.items() if n not in computed}
    routed = sum(s for n, s in sizes.items() if ".mlp.experts." in n)
    total = sum(sizes.values())
    share = dims.experts_per_token / dims.experts if dims.experts else 0
    return {"total": total, "active_per_token": total - routed + int(routed * share)}


def memory(surveyed: Survey, max_len: int, max_batch: int) -> dict[str, int]:
    """Bytes of weights, of the KV cache a token, and at the peak of a full cache with one prompt's activations."""
    dims = surveyed.dims
    item = _BYTES[surveyed.dtype]
    weights = sum(_BYTES[d] * math.prod(s) for d, s in surveyed.weights.values())
    kv = (dims.cached or 2 * dims.layers * dims.kv_heads * dims.head_dim) * item
    widest = max(dims.intermediate, dims.moe_intermediate * max(dims.experts_per_token, 1), dims.heads * dims.head_dim)
    activations = max_len * (2 * dims.hidden + 3 * widest) * item + dims.vocabulary * 4 * max_batch
    return {"weights_bytes": weights, "kv_bytes_per_token": kv,
            "peak_bytes": weights + kv * max_len * max_batch + activations}


def roofline(surveyed: Survey) -> dict[str, Any]:
    """Bytes that one decoded token must read (the embedding gives one row), and the rate that bandwidth allows."""
    dims, target = surveyed.dims, surveyed.target
    share = dims.experts_per_token / dims.experts if dims.experts else 1
    read = 0.0
    for name, (dtype, shape) in surveyed.weights.items():
        size = _BYTES[dtype] * math.prod(shape)
        if name.endswith("embed_tokens.weight") and not dims.tied:
            size = size // shape[0]
        read += size * (share if ".mlp.experts." in name else 1)
    return {"target": target.name, "bandwidth_bytes_per_second": target.bandwidth, "bytes_per_token": int(read),
            "tokens_per_second": round(target.bandwidth / read, 3)}


def plan(source: Any, target: str = "cpu", dtype: str = "auto", max_len: int = 4096, max_batch: int = 1,
         progress: Progress = lambda *_: None, ranks: int = 1, link: str = "loopback") -> Plan:
    """Survey `source` (a checkpoint folder or a config.json) for `target`. Reads no weights.

    ranks, link: how many ranks to foretell the times of, and what is between them (a name of `glmc.topology.LINKS`).
    Raises ConfigError, UnknownFamily, PromiseBroken, UnknownName, UsageError (ranks).
    """
    began = time.perf_counter()
    if ranks < 1:
        raise UsageError("the number of ranks is out of range", field="ranks", expected="at least 1", found=ranks)
    named_link(link)  # refused now, and not after the trace
    settings = settings_of(source, read_config(source))
    surveyed = survey(source, named(target), dtype, progress)
    dims = surveyed.dims
    made = Plan(
        model_type=dims.model_type, architecture=(surveyed.config.get("architectures") or [type(surveyed.module).__name__])[0],
        layers=dims.layers, parameters=parameters(surveyed),
        regions={"distinct": sum(len(p.regions) for p in surveyed.programs.values()),
                 "calls": sum(p.calls() for p in surveyed.programs.values())},
        ledger=surveyed.ledger, memory=memory(surveyed, max_len, max_batch), roofline=roofline(surveyed),
        seconds=round(time.perf_counter() - began, 3), notes=surveyed.notes, media=_media(settings, surveyed),
        forecast=forecast(surveyed, ranks, link) if ranks != 1 else None,
        pictured={"parts": {name: part.to_json() for name, part in surveyed.programs.items()}, "drawing": surveyed.drawing,
                  "texts": {n: r.text() for p in surveyed.programs.values() for n, r in p.regions.items()}})
    return surveyed.ledger.demand(made)


def _media(settings: Settings | None, surveyed: Survey) -> dict[str, Any] | None:
    tower = surveyed.dims.tower
    if settings is None or tower is None:
        return None
    program = surveyed.programs["vision"]
    native = surveyed.target.engine == "native" and program.engine is None
    return largest_media(settings, tower, surveyed.dims.hidden, _BYTES[surveyed.dtype],
                         Tower(program, {}, forms(program, None), 1).patch_bytes if native else None)
