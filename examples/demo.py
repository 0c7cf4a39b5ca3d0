"""Compile the little GLM-4.5 of this folder, print its ledger, and let it write: the road from end to end.

    python examples/demo.py [--target cpu|fx] [--keep ARTEFACT]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import glmc

HERE = Path(__file__).parent
PROMPTS = ("In the beginning God created", "And it came to pass, that when the king")
SAID: list[str] = []


def progress(stage: str, done: int, total: int) -> None:
    """One line a stage, when it is done."""
    line = f"  {stage}: {total}"
    if done == total and line not in SAID:
        SAID.append(line)
        print(line, file=sys.stderr)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="cpu", help="cpu compiles with AOTInductor; fx interprets, with no compiler")
    parser.add_argument("--keep", type=Path, help="leave the artefact here; otherwise it is made in a temporary folder")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        out = options.keep or Path(scratch) / "tiny.glmc"
        began = time.perf_counter()
        artifact = glmc.compile(HERE / "tiny-glm4-moe", out, target=options.target, max_len=512, max_batch=2,
                                progress=progress)
        print(f"compiled in {time.perf_counter() - began:.0f} s; the ledger:\n")
        print(f"  {'fusion':20} {'expected':>8} {'proved':>7} {'taken':>6} {'refused':>8}")
        for row in artifact.json("ledger.json")["ledger"]:
            if row["expected"] or row["proved"]:
                print(f"  {row['fusion']:20} {row['expected']:8} {row['proved']:7} {row['taken']:6} {len(row['refused']):8}")
        model = glmc.load(out)
        for prompt in PROMPTS:
            made = model.generate(prompt, max_new_tokens=40, raw=True, temperature=0.7, top_p=0.9, seed=4)
            rate = (len(made.token_ids) - 1) / made.timings["decode"] if made.timings["decode"] else 0.0
            print(f"\n> {prompt}\n{prompt}{made.text}\n  [{len(made.token_ids)} tokens, {rate:.0f} a second]")


if __name__ == "__main__":
    main()
