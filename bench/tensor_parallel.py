"""Two ranks of one thread against one rank of one thread and of two: decoding and a prompt, random weights, taking turns.

    python bench/tensor_parallel.py [--quant none] [--layers 12] [--rounds 5] [--out FILE]

The ranks are processes over gloo. A sample is the seconds of one prompt of 256 tokens, and of a token decoded after it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from checkpoints import GLM4_220M, write
from report import Report, default_out
from torch import distributed as world

import glmc
from glmc.runtime.ranks import Alone

HOW = ("A GLM-4 of random weights; the contenders take turns in rounds, each in processes of its own that wait in between; a "
       "sample is the median of a round's tokens, ratios are of medians")
PROMPT, TOKENS = 256, 24


class Gloo(Alone):
    """One of several processes."""

    def __init__(self, rank: int, size: int, place: str) -> None:
        world.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=size)
        self.rank, self.size = rank, size

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        world.all_reduce(tensor)
        return tensor

    def all_gather(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        world.all_gather(parts, tensor)
        return torch.cat(parts, dim)


def serve(rank: int, size: int, threads: int, place: str, out: str, asked: Any, told: Any) -> None:
    """Loads, then answers each request with the seconds of a prompt and of a token."""
    model = glmc.load(out, threads=threads, ranks=Gloo(rank, size, place) if size > 1 else None)
    ids = torch.randint(2, model.dims["vocabulary"], (PROMPT,), generator=torch.Generator().manual_seed(1)).tolist()
    told.put("ready")
    while asked.get():
        began = time.perf_counter()
        token = int(model.extend(0, ids, 0)[0, -1].argmax())
        prompt, each = time.perf_counter() - began, []
        for at in range(PROMPT, PROMPT + TOKENS):
            began = time.perf_counter()
            token = int(model.advance(torch.tensor([[token]]), torch.tensor([[at]]))[0, -1].argmax())
            each.append(time.perf_counter() - began)
        told.put((prompt, statistics.median(each)))


class Contender:
    """Processes that run a model together."""

    def __init__(self, ranks: int, threads: int, out: Path, scratch: Path) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self.lines = [(context.Queue(), context.Queue()) for _ in range(ranks)]
        place = str(scratch / f"meet-{ranks}-{threads}")
        self.processes = [context.Process(target=serve, args=(rank, ranks, threads, place, str(out), *self.lines[rank]))
                          for rank in range(ranks)]
        for process in self.processes:
            process.start()
        for _, told in self.lines:
            told.get(timeout=300)

    def sample(self) -> tuple[float, float]:
        for asked, _ in self.lines:
            asked.put(True)
        found = [told.get(timeout=300) for _, told in self.lines]
        return max(p for p, _ in found), max(t for _, t in found)

    def end(self) -> None:
        for asked, _ in self.lines:
            asked.put(False)
        for process in self.processes:
            process.join(30)


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
        contenders = {name: Contender(ranks, threads, scratch / "model.glmc", scratch) for name, ranks, threads in (
            ("1 rank, 1 thread", 1, 1), ("1 rank, 2 threads", 1, 2), ("2 ranks, 1 thread each", 2, 1))}
        for number in range(told.rounds + 1):
            for name, contender in contenders.items():
                sample = contender.sample()
                if number:  # the first only warms
                    found.setdefault(name, []).append(sample)
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
