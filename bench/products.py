"""One product at a time: our panels beside what torch offers, for the shapes of a model and 1, 8 and 256 rows.

    python bench/products.py [--out FILE]

torch: functional.linear (oneDNN); packed: oneDNN with weights in its own layout, as freezing makes them; inductor: one row as
multiply-and-sum, compiled. As many copies of each matrix as do not fit the caches are gone through in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
from report import Report, default_out

SHAPES = {"qkv 1280 x 1024": (1280, 1024), "gate and up 6848 x 1024": (6848, 1024), "down 1024 x 3424": (1024, 3424),
          "head 32000 x 1024": (32000, 1024)}
ROWS = (1, 8, 256)
CACHED = 96 << 20
HOW = ("bfloat16 activations; two threads; medians of --rounds rounds in which contenders take turns; each round goes once "
       "through copies of the matrix that together exceed the caches; microseconds a product. Ours includes rounding the "
       "activations")


def native(matrix: Any, form: str, rows: int, copies: int) -> Callable[[], None]:
    """A pass over `copies` copies of a matrix kept in a form."""
    import torch

    from glmc.checkpoint.tensor_bytes import torch_dtype
    from glmc.native import panels
    from glmc.native.calls import Call, Form, Rows, Stride, Weight
    from glmc.native.executor import Executor, Item
    from glmc.native.keep import Keep

    keep = Keep(form, tuple(matrix.shape), "bfloat16")
    packed = torch.empty(keep.stored()[1], dtype=torch_dtype(keep.stored()[0]))
    panels.pack(matrix, form, packed)
    weights = {f"w{i}": packed.clone() for i in range(copies)}
    outputs, inputs = matrix.shape
    x, y = Rows(0, 0, inputs), Rows(1, 0, outputs)
    calls = [Call("linear", [inputs, outputs, Stride(0), Stride(1), Form(name), 0], [x, Weight(name, None), None, y, None],
                  writes=(1,)) for name in weights]
    executor = Executor([Item(c, {0: 0, 1: 1}, {n: n for n in weights}) for c in calls], {0: inputs, 1: outputs}, weights,
                        dict.fromkeys(weights, keep), None, rows, 2, (0, 1))
    executor.rows(0, rows).copy_(torch.randn(rows, inputs))
    zero = torch.zeros(rows, dtype=torch.int64)
    return lambda: executor.run(zero, zero, zero, zero[:0], None)


def theirs(matrix: Any, kind: str, rows: int, copies: int) -> Callable[[], None]:
    """The same by torch."""
    import torch
    from torch.nn import functional

    x = torch.randn(rows, matrix.shape[1]).bfloat16()
    weights = [matrix.bfloat16().clone() for _ in range(copies)]
    if kind == "packed":
        weights = [torch.ops.mkldnn._reorder_linear_weight(w.to_mkldnn(), rows) for w in weights]
        call: Any = lambda w: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")  # noqa: E731
    elif kind == "inductor":
        call = torch.compile(lambda w: (w.float() * x.float()).sum(-1).bfloat16())
    else:
        call = lambda w: functional.linear(x, w)  # noqa: E731

    def run() -> None:
        with torch.no_grad():
            for weight in weights:
                call(weight)
    return run


def timed(run: Callable[[], None], copies: int) -> float:
    """Microseconds a product, of one pass."""
    began = time.perf_counter()
    run()
    return (time.perf_counter() - began) / copies * 1e6


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--out", type=Path, default=default_out("products"))
    given = options.parse_args()
    import torch

    torch.set_num_threads(2)
    report, details = Report("products", given.out), {}
    for title, (outputs, inputs) in SHAPES.items():
        matrix = torch.randn(outputs, inputs) * inputs ** -0.5
        copies = -(-CACHED // (2 * outputs * inputs))
        for rows in ROWS:
            runs = {"BF16": native(matrix, "BF16", rows, copies), "torch": theirs(matrix, "torch", rows, copies),
                    "packed": theirs(matrix, "packed", rows, copies), "Q8": native(matrix, "Q8", rows, copies),
                    "Q4": native(matrix, "Q4", rows, copies)}
            if rows == 1:
                runs["inductor"] = theirs(matrix, "inductor", rows, copies)
            samples = measure.interleave({n: (lambda r=r, c=copies: timed(r, c)) for n, r in runs.items()}, given.rounds)
            medians = {n: statistics.median(s) for n, s in samples.items()}
            details[f"{title}, {rows} rows"] = {n: measure.summary(s, 1) for n, s in samples.items()}
            best = min((n for n in medians if n in ("torch", "packed", "inductor")), key=medians.__getitem__)
            report.add(f"{title}, {rows} rows: ours in bfloat16", medians["BF16"], "us")
            report.add(f"the best of torch ({best}) over ours", medians[best] / medians["BF16"], "x", 1.0, "higher")
    report.finish(HOW, details)


if __name__ == "__main__":
    main()
