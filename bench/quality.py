"""What quantising costs: perplexity of the example model on text it has not seen, and the error of each kind of matrix.

    LLAMA_PYTHON=LLAMA_ENVIRONMENT/bin/python python bench/quality.py

With LLAMA_PYTHON the same checkpoint is made into GGUF files and read by llama.cpp on the same text (see peers/README.md).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from report import ROOT, Report, default_out

sys.path.insert(0, str(ROOT / "examples"))
HOW = ("Held-out chapters of the King James Bible in rows of --length tokens, every row from an empty cache; perplexity is exp "
       "of the mean cross entropy. `published` is transformers in float32. Errors are |kept - published| / |published| over "
       "all layers; q4_0 and q8_0 are computed as llama.cpp quantises. Bars: no worse than llama.cpp at the same width")


def rows_of(folder: Path, length: int, count: int) -> list[list[int]]:
    """The first `count` held-out rows."""
    from tiny_text import held_out_rows, read_chapters, split_held_out
    from transformers import PreTrainedTokenizerFast

    return held_out_rows(PreTrainedTokenizerFast.from_pretrained(folder), split_held_out(read_chapters())[1], length)[:count]


def nats(logits_of: Any, rows: list[list[int]]) -> list[float]:
    """Cross entropy of each row's tokens but the first, summed."""
    import torch
    from torch.nn import functional

    return [float(functional.cross_entropy(logits_of(torch.tensor([row[:-1]]))[0].float(), torch.tensor(row[1:]),
                                           reduction="sum")) for row in rows]


def increase(found: list[float], base: list[float], length: int) -> tuple[float, float]:
    """By how many percent perplexity is greater, and the standard error of that, from the rows' differences."""
    gaps = [(a - b) / length for a, b in zip(found, base, strict=True)]
    return 100 * math.expm1(statistics.fmean(gaps)), 100 * statistics.stdev(gaps) / math.sqrt(len(gaps))


def published(folder: Path, rows: list[list[int]]) -> list[float]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return nats(lambda ids: model(ids).logits, rows)


def llama_form(matrix: Any, bits: int) -> Any:
    """A float32 matrix [N, K] as llama.cpp's Q8_0 or Q4_0 keeps it: groups of 32, the largest value becomes 127 or -8."""
    grouped = matrix.unflatten(-1, (-1, 32))
    if bits == 8:
        scale = (grouped.abs().amax(-1, keepdim=True) / 127).half().float()
        return ((grouped / scale.where(scale > 0, 1)).round() * scale).flatten(-2)
    far = grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True))
    exact = far / -8
    codes = (grouped / exact.where(exact != 0, 1)).add(8.5).floor().clamp(0, 15) - 8
    return (codes * exact.half().float()).flatten(-2)


def errors(folder: Path, artifact: Path, bits: int) -> dict[str, dict[str, float]]:
    """Kind of matrix -> relative error of what we keep, and of llama.cpp's form at the same width."""
    import glmc
    from glmc.native import panels
    from glmc.native.keep import kept_of

    plain, quantised = glmc.load(folder), glmc.load(artifact)
    first, second = (kept_of(m.artifact.json("program.json")) for m in (plain, quantised))
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for name, keep in second.items():
        if keep.form not in ("Q8", "Q4"):
            continue
        exact = first[name].plain(plain.weights[name]).float()
        found = panels.unpack(quantised.weights[name], keep.form, keep.sizes, keep.halves)
        kind = re.sub(r"^.*layers\.\d+\.", "", name) + f" ({keep.form})"
        theirs = llama_form(exact, 8 if keep.form == "Q8" else bits)
        for i, value in enumerate((found - exact, theirs - exact, exact)):
            sums[kind][i] += float(value.square().sum())
    return {kind: {"glmc": round(math.sqrt(a / c), 5), "llama.cpp": round(math.sqrt(b / c), 5)}
            for kind, (a, b, c) in sums.items()}


def llama(python: str, folder: Path, scratch: Path, rows: list[list[int]]) -> dict[str, list[float]]:
    """GGUF type -> nats of each row by llama.cpp."""
    peers, types = ROOT / "bench" / "peers", ("bf16", "Q8_0", "Q4_0", "Q4_0-pure")
    (scratch / "rows.json").write_text(json.dumps(rows))
    subprocess.run([python, str(peers / "gguf_files.py"), str(folder), str(scratch / "gguf"), "--types", ",".join(types)],
                   check=True, capture_output=True)
    found = {}
    for kind in types:
        made = subprocess.run([python, str(peers / "perplexity_llama.py"), str(scratch / "gguf" / f"{kind}.gguf"),
                               str(scratch / "rows.json")], check=True, capture_output=True, text=True)
        found[kind] = json.loads(made.stdout.splitlines()[-1])["nats"]
    return found


def _signed(found: list[float], other: list[float], length: int) -> tuple[float, str]:
    """The difference in percent, and as its unit the standard error."""
    value, sure = increase(found, other, length)
    return value, f"% (standard error {sure:.4f})"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--checkpoint", type=Path, default=ROOT / "examples" / "tiny-glm4-moe")
    options.add_argument("--length", type=int, default=256)
    options.add_argument("--rows", type=int, default=1000)
    options.add_argument("--out", type=Path, default=default_out("quality"))
    given = options.parse_args()
    import glmc

    report, details = Report("quality", given.out), {}
    rows = rows_of(given.checkpoint, given.length, given.rows)
    with tempfile.TemporaryDirectory(prefix="glmc-bench-") as made:
        scratch = Path(made)
        exact = published(given.checkpoint, rows)
        found = {}
        for quant in ("none", "int8", "int4"):
            out = scratch / f"{quant}.glmc"
            glmc.compile(given.checkpoint, out, quant=quant, max_len=given.length)
            found[quant] = nats(glmc.load(out).logits, rows)
        python = os.environ.get("LLAMA_PYTHON")
        theirs = llama(python, given.checkpoint, scratch, rows) if python else {}
        report.add("published, float32", math.exp(sum(exact) / len(rows) / given.length), "perplexity")
        for quant, peer in (("none", "bf16"), ("int8", "Q8_0"), ("int4", "Q4_0")):
            ours, sure = increase(found[quant], exact, given.length)
            judged = theirs and quant != "none"
            bar = round(increase(theirs[peer], exact, given.length)[0], 4) if judged else None
            report.add(f"glmc {quant}: increase", ours, "%", bar, "lower")
            report.add(f"glmc {quant}: standard error of the increase", sure, "%")
            if theirs:
                report.add(f"glmc {quant} over llama.cpp {peer}: difference",
                           *_signed(found[quant], theirs[peer], given.length))
        for kind, value in theirs.items():
            report.add(f"llama.cpp {kind}: increase", increase(value, exact, given.length)[0], "%")
        for quant, bits in (("int8", 8), ("int4", 4)):
            details[quant] = errors(scratch / "none.glmc", scratch / f"{quant}.glmc", bits)
    details |= {"nats of rows": {"published": exact, **found}, "llama.cpp": theirs or "not measured: LLAMA_PYTHON is not set",
                "tokens": sum(len(row) - 1 for row in rows)}
    report.finish(HOW, details)


if __name__ == "__main__":
    main()
