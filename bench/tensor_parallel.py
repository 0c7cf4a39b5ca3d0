"""Two ranks of one thread against one rank of one thread and of two: decoding and a prompt, random weights, taking turns.

    python bench/tensor_parallel.py [--quant none] [--layers 12] [--rounds 5] [--out FILE]

The ranks are processes over gloo, with every check of `glmc run --ranks`. A sample is the seconds of one prompt of 256
tokens, and of a token decoded after it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from checkpoints import GLM4_220M, write
from rank_processes import Contender
from report import Report, default_out

import glmc
from glmc.runtime.ranks import Ranks

HOW = ("A GLM-4 of random weights; the contenders take turns in rounds, each in processes of its own that wait in between; a "
       "sample is the median of a round's tokens, ratios are of medians")
PROMPT, TOKENS = 256, 24


def opened(ranks: Ranks, threads: int, out: str) -> Callable[[], tuple[float, float]]:
    """Seconds of a prompt and of a token after it."""
    model = glmc.load(out, threads=threads, ranks=ranks)
    ids = torch.randint(2, model.dims["vocabulary"], (PROMPT,), generator=torch.Generator().manual_seed(1)).tolist()

    def sample() -> tuple[float, float]:
        began = time.perf_counter()
        token = int(model.extend(0, ids, 0)[0, -1].argmax())
        prompt, each = time.perf_counter() - began, []
        for at in range(PROMPT, PROMPT + TOKENS):
            began = time.perf_counter()
            token = int(model.advance(torch.tensor([[token]]), torch.tensor([[at]]))[0, -1].argmax())
            each.append(time.perf_counter() - began)
        return prompt, statistics.median(each)

    return sample


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--quant", default="none")
    ask.add_argument("--layers", type=int, default=GLM4_220M["num_hidden_layers"])
    ask.add_argument("--rounds", type=int, default=5)
    ask.add_argument("--out", type=Path, default=default_out("tensor_parallel"))
    told = ask.parse_args()
    report = Report("tensor_parallel", told.out)
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        write(scratch / "checkpoint", {**GLM4_220M, "num_hidden_layers": told.layers})
        glmc.compile(scratch / "checkpoint", scratch / "model.glmc", quant=told.quant, max_len=512)
        out = str(scratch / "model.glmc")
        contenders = {name: Contender(ranks, threads, scratch / f"{ranks}-{threads}", opened, out)
                      for name, ranks, threads in (("1 rank, 1 thread", 1, 1), ("1 rank, 2 threads", 1, 2),
                                                   ("2 ranks, 1 thread each", 2, 1))}
        for number in range(told.rounds + 1):
            for name, contender in contenders.items():
                sample = contender.sample()
                if number:  # the first only warms
                    found.setdefault(name, []).append((max(p for p, _ in sample), max(t for _, t in sample)))
        for contender in contenders.values():
            contender.end()
    medians = {name: [statistics.median(column) for column in zip(*samples, strict=True)] for name, samples in found.items()}
    for name, (prompt, token) in medians.items():
        report.add(f"prompt of {PROMPT}, {name}", PROMPT / prompt, "tokens/s")
        report.add(f"decode, {name}", 1 / token, "tokens/s")
    two = medians["2 ranks, 1 thread each"]
    for name in ("1 rank, 1 thread", "1 rank, 2 threads"):
        report.add(f"prompt, 2 ranks over {name}", medians[name][0] / two[0], "times")
        report.add(f"decode, 2 ranks over {name}", medians[name][1] / two[1], "times")
    report.finish(HOW, {"quant": told.quant, "layers": told.layers, "samples": found})


if __name__ == "__main__":
    main()
