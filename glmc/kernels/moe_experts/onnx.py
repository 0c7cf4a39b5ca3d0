"""Tokens through their chosen experts: a loop over the experts that were chosen, each once, with two products and the gate.

An expert's matrices are taken out of their stacks when its turn comes, so only chosen ones are read.
"""

from __future__ import annotations

from typing import Any

from glmc.kernels.onnx import alone, fixed, only_float32, subgraph, value
from glmc.kernels.silu_mul.onnx import emit as silu_mul


def accepts(site) -> str | None:
    return only_float32(site, "x", "gate_up", "down")


def emit(op: Any, x: Any, experts: Any, weights: Any, gate_up: Any, down: Any) -> Any:
    """x [T, H], experts int64 [T, K] below E, weights float32 [T, K], gate_up [E, 2I, H], down [E, H, I] -> [T, H]."""
    hidden, inner = fixed(gate_up, 2), fixed(gate_up, 1) // 2
    chosen = op.Unique(op.Reshape(experts, [-1]), sorted=1)
    count = op.Squeeze(op.Shape(chosen), [0])

    def one(inside: Any, turn: Any, go: Any, total: Any) -> tuple[Any, Any]:
        expert = inside.Gather(chosen, turn, axis=0)
        places = inside.NonZero(inside.Equal(experts, expert))
        token = inside.Gather(places, 0, axis=0)
        rows = inside.Gather(x, token, axis=0)
        both = inside.Gemm(rows, inside.Gather(gate_up, expert, axis=0), transB=1)
        gate, up = inside.Split(both, [inner, inner], axis=-1, _outputs=2)
        out = inside.Gemm(silu_mul(inside, gate, up), inside.Gather(down, expert, axis=0), transB=1)
        share = inside.GatherND(weights, inside.Transpose(places, perm=[1, 0]))
        out = inside.Mul(out, inside.Unsqueeze(share, [-1]))
        return inside.Identity(go), inside.ScatterND(total, inside.Unsqueeze(token, [-1]), out, reduction="add")

    total, after = (value(name, "float32", ["T", hidden]) for name in ("total", "sum"))
    body = subgraph(op, one, "expert", [value("turn", "int64", []), value("go", "bool", []), total],
                    [value("goes", "bool", []), after])
    return op.Loop(count, None, op.Mul(x, 0.0), body=body)


run = alone(emit)
