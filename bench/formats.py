"""Formats of quantised checkpoints by family: what becomes of them in an artefact for CPUs, how large, how far from exact.

    python bench/formats.py
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from report import ROOT, Report, default_out

sys.path.insert(0, str(ROOT / "tests"))  # the writer of tiny checkpoints, which knows nothing of the reader

FAMILIES = ("glm4", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa")
NAMES = {"quark": "MXFP4 (Quark)", "fp8": "FP8, blocks", "channel": "FP8, per channel", "tensor": "FP8, per tensor",
         "modelopt": "NVFP4 (ModelOpt)"}
PROMPT, NEW = 60, 32
HOW = ("Tiny random models written quantised by tests/quantised.py, compiled for target cpu. The reference is transformers "
       "in float32 with exactly the decoded weights, given 60 tokens. float32: largest difference of logits, and whether 32 "
       "greedy tokens are equal. bfloat16: norm of the difference over the norm of the logits, of weights kept as they are and "
       "of the same expanded by --dtype bfloat16; in models so small one expert or slot that is chosen otherwise is a tenth. "
       "Bits are those of kept matrices a weight, scales and filling included: narrow matrices are filled up. FP8 in blocks "
       "of 32 inputs, as this writer makes them for tiny widths, is kept only where a block is a whole row")


def bits(kept: dict[str, Any], form: str) -> float | None:
    """Bits a weight of the matrices in a form."""
    mine = [keep for keep in kept.values() if keep.form == form]
    stored = sum(8 * math.prod(keep.stored()[1]) for keep in mine)
    return stored / sum(math.prod(keep.sizes) for keep in mine) if mine else None


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, default=default_out("formats"))
    given = options.parse_args()
    report, details = Report("formats", given.out), {}
    import models
    import quantised
    import torch

    import glmc

    forms = {"quark": "MX4", "fp8": "F8", "channel": "F8", "tensor": "F8", "modelopt": "NV4"}
    folder = Path(tempfile.mkdtemp(prefix="glmc-bench-"))
    ids = models.prompts(131, PROMPT)[0]
    for family in FAMILIES:
        for kind, form in forms.items():
            row: dict[str, Any] = {}
            for dtype, asked in (("float32", "auto"), ("bfloat16", "auto"), ("bfloat16", "bfloat16")):
                made = quantised.written(kind, family=family, dtype=dtype)
                out = folder / f"{family}-{kind}-{dtype}-{asked}.glmc"
                glmc.compile(made.folder, out, target="cpu", dtype=asked, max_len=PROMPT + NEW)
                session = glmc.load(out)
                exact = models.logits(made.reference, ids)
                apart = session.logits(torch.tensor([ids]))[0] - exact
                name = f"{dtype} {'kept' if asked == 'auto' else 'expanded'}"
                row[name] = {"largest": float(apart.abs().max()), "relative": float(apart.norm() / exact.norm())}
                if dtype == "float32":
                    row["tokens equal"] = (session.generate(ids, max_new_tokens=NEW).token_ids
                                           == models.greedy(made.reference, ids, NEW))
                if asked == "auto":
                    row["matrices"] = dict(Counter(keep.form for keep in session.kept.values()))
                    row["bits"] = bits(session.kept, form)
            details[f"{family} {NAMES[kind]}"] = row
            title = f"{family}, {NAMES[kind]}"
            report.add(f"{title}: float32, largest error", row["float32 kept"]["largest"] * 1e6, "millionths", 100.0)
            report.add(f"{title}: float32, greedy tokens equal", row["tokens equal"], "", True, "equal")
            report.add(f"{title}: bfloat16 kept / expanded, relative error",
                       f"{row['bfloat16 kept']['relative']:.4f} / {row['bfloat16 expanded']['relative']:.4f}", "")
            report.add(f"{title}: bits a weight", row["bits"], "")
    report.finish(HOW, json.loads(json.dumps(details)))


if __name__ == "__main__":
    main()
