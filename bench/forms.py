"""The forms of a matrix against each other: products of one and of eight rows, and packing, in one process, taking turns.

    python bench/forms.py [--outputs 16384] [--inputs 12288] [--threads 2] [--rounds 9] [--out FILE]
"""

from __future__ import annotations

import argparse
import mmap
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import measure
import torch
from report import Report, default_out

from glmc.checkpoint.tensor_bytes import torch_dtype
from glmc.native import panels, variant
from glmc.native.calls import Call, Form, Rows, Stride, Weight
from glmc.native.executor import Executor, Item
from glmc.native.keep import Keep
from glmc.native.quantise import quantised

BARS = {"MX4": 1.5, "F8": 1.5}
HOW = ("A random matrix larger than the caches, in each form; a product is one call of the native library's `linear`, and a "
       "sample the median of five; contenders take turns. Ratios are to BF16 in the same run. Packing is on one thread, from a "
       "checkpoint's codes for MX4, F8 and NV4, else from bfloat16; bytes are those of the source")


def room(keep: Keep) -> torch.Tensor:
    """Memory for a packed matrix as artefacts get it: in huge pages where the system has them."""
    dtype, shape = keep.stored()
    nbytes = torch.empty(shape, dtype=torch_dtype(dtype), device="meta").nbytes
    memory = mmap.mmap(-1, nbytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch_dtype(dtype)).view(shape)


def product(keep: Keep, weight: torch.Tensor, rows: int, threads: int) -> Callable[[], float]:
    """A product of random rows: each call gives the median of some, in seconds."""
    outputs, inputs = keep.sizes
    widths = {0: inputs, 1: outputs}
    x, w, y = Rows(0, 0, inputs), Weight("w", None), Rows(1, 0, outputs)  # type: ignore[arg-type]
    call = Call("linear", [inputs, outputs, Stride(0), Stride(1), Form("w"), 0], [x, w, None, y, None], writes=(1,))
    executor = Executor([Item(call, {0: 0, 1: 1}, {"w": "w"})], widths, {"w": weight}, {"w": keep}, None, rows, threads, [0, 1])
    executor.rows(0, rows).copy_(torch.randn(rows, inputs))
    none = torch.zeros(rows, dtype=torch.int64)
    return lambda: statistics.median(measure.seconds_of(lambda: executor.run(none, none, none, none[:0], None), 5))


def pack(matrix: torch.Tensor, form: str, out: torch.Tensor) -> tuple[Callable[[], float], int]:
    """Packing once, in seconds, and the bytes that it reads."""
    if form in panels.CODED:
        codes, scales, factor, block = quantised(matrix, form)
        nbytes = codes.nbytes + scales.nbytes

        def run() -> None:
            panels.pack_codes(form, codes, scales, factor, block, out=out)
    else:
        nbytes = matrix.nbytes

        def run() -> None:
            panels.pack(matrix, form, out)

    def timed() -> float:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    return timed, nbytes


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--outputs", type=int, default=16384)
    options.add_argument("--inputs", type=int, default=12288)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--out", type=Path, default=default_out("forms"))
    given = options.parse_args()
    torch.set_num_threads(1)
    report = Report("forms", given.out)
    matrix = torch.randn(given.outputs, given.inputs, generator=torch.Generator().manual_seed(0)).bfloat16()
    keeps = {form: Keep(form, tuple(matrix.shape), "bfloat16") for form in panels.FORMS}
    packed, packing, sources = {}, {}, {}
    for form, keep in keeps.items():
        packed[form] = room(keep)
        packing[form], sources[form] = pack(matrix, form, packed[form])
    details = {"build": variant(), "threads": given.threads, "sizes": list(matrix.shape)}
    samples = measure.interleave(packing, 3)
    details["packing_seconds"] = {form: measure.summary(s) for form, s in samples.items()}
    for form, found in samples.items():
        report.add(f"packing {form}, of {'codes' if form in panels.CODED else 'bfloat16'}",
                   sources[form] / statistics.median(found) / 1e9, "GB/s", 2.0 if form in ("BF16", "MX4") else None, "higher")
    for rows in (1, 8):
        samples = measure.interleave({form: product(keeps[form], packed[form], rows, given.threads) for form in keeps},
                                     given.rounds)
        details[f"product_seconds_{rows}"] = {form: measure.summary(s, 6) for form, s in samples.items()}
        for form, found in samples.items():
            ratio = statistics.median(samples["BF16"]) / statistics.median(found)
            report.add(f"{form} over BF16, {rows} row{'s' if rows > 1 else ''}", ratio, "x",
                       BARS.get(form) if rows == 1 else None, "higher")
    report.finish(HOW, details)


if __name__ == "__main__":
    main()
