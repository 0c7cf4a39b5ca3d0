"""What a request must at least move and multiply, and the seconds that the probed machine needs for that at best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from glmc.bench.work import Work

if TYPE_CHECKING:
    from glmc.runtime.session import Model

_ITEM = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Traffic:
    """Of a model. weight_bytes: what every step reads. expert_bytes: all routed experts'; expert_share: of which a token
    visits. kv_bytes: that a token leaves in the cache. operations, head_operations: of the products, a token;
    attention_operations: of one token with one cached token, over all layers. most_attended: the most cached tokens that one
    attends to, 0 for all."""

    weight_bytes: float
    expert_bytes: float
    expert_share: float
    kv_bytes: float
    operations: float
    head_operations: float
    attention_operations: float
    most_attended: int = 0

    def attended(self, context: float) -> float:
        """How many cached tokens a token behind `context` others attends to."""
        return min(context, self.most_attended) if self.most_attended else context

    def to_json(self) -> dict[str, float]:
        return asdict(self)

    def prefill(self, work: Work) -> tuple[float, float]:
        """(bytes, operations) of reading every row's prompt, one row after another."""
        visited = self.expert_bytes * (1 - (1 - self.expert_share) ** work.input_len)
        attended = work.input_len * self.attended((work.input_len + 1) / 2)
        moved = self.weight_bytes + visited + self.kv_bytes * work.input_len
        done = self.operations * work.input_len + self.head_operations + self.attention_operations * attended
        return work.batch_size * moved, work.batch_size * done

    def decode(self, work: Work) -> tuple[float, float]:
        """(bytes, operations) of a step in the middle of the answer, all rows together."""
        context = self.attended(work.input_len + work.output_len / 2)
        visited = self.expert_bytes * (1 - (1 - self.expert_share) ** work.batch_size)
        moved = self.weight_bytes + visited + work.batch_size * self.kv_bytes * context
        done = self.operations + self.head_operations + self.attention_operations * context
        return moved, work.batch_size * done


@dataclass(frozen=True)
class Bound:
    """Seconds at best. by: what sets each, "memory" or "arithmetic"."""

    ttft: float
    tpot: float
    e2el: float
    by: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return {"ttft_ms": round(self.ttft * 1e3, 6), "tpot_ms": round(self.tpot * 1e3, 6),
                "e2el_ms": round(self.e2el * 1e3, 6), "by": dict(self.by)}


def bound(traffic: Traffic, work: Work, probe: Mapping[str, Any]) -> Bound:
    """probe: as glmc.bench.probe tells it, medians over the run. The faster of its matrix rates counts."""
    bandwidth, rate = probe["read_gb_per_second"] * 1e9, max(probe["matrix_gflops"].values()) * 1e9

    def least(moved: float, done: float) -> tuple[float, str]:
        memory, arithmetic = moved / bandwidth, done / rate
        return (memory, "memory") if memory >= arithmetic else (arithmetic, "arithmetic")

    (ttft, first), (tpot, rest) = least(*traffic.prefill(work)), least(*traffic.decode(work))
    return Bound(ttft, tpot, ttft + tpot * (work.output_len - 1), {"ttft": first, "tpot": rest})


def traffic_of(model: Model) -> Traffic:
    """From the weights as they lie in memory, in whatever form they are kept, and the sizes in the regions' texts."""
    dims, weights = model.dims, model.weights
    specs = model.program.weights()
    dense = routed = done = head = 0.0
    share = dims["experts_per_token"] / dims["experts"] if dims["experts"] else 0.0
    for name, spec in specs.items():
        held, elements = weights[name].nbytes, math.prod(map(int, spec.shape))
        if ".experts." in name:
            routed += held
            done += 2 * elements * share
        elif name.endswith("embed_tokens.weight"):
            # A step looks up one row a token; where the head is tied to it, it is read whole, by the head.
            dense += held if dims["tied"] else held / int(spec.shape[0])
            head += 2 * elements if dims["tied"] else 0
        else:
            dense += held
            if len(spec.shape) > 1:
                head, done = (head + 2 * elements, done) if name.startswith("lm_head") else (head, done + 2 * elements)
    cached = dims.get("cached") or 2 * dims["layers"] * dims["kv_heads"] * dims["head_dim"]
    return Traffic(dense, routed, share, cached * _ITEM[model.artifact.manifest["dtype"]], done, head,
                   4.0 * dims["layers"] * dims["heads"] * dims["head_dim"], dims.get("index_topk", 0))
