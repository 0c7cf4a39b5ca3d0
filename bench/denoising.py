"""A step of GLM-Image's diffusion transformer: two ranks of one thread against one rank of one thread, taking turns.

    python bench/denoising.py [--layers 4] [--side 512] [--steps 2] [--rounds 5] [--dtype float32] [--out FILE]

Ranks share the rows of the picture, or take one of guidance's two calls each (`cfg`). The transformer is a random one of 512
channels; a step is both calls. What `glmc.topology` foretells stands beside what was measured.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pictures
import torch
from measure import summary
from rank_processes import Contender
from report import Report, default_out

import glmc
from glmc.artifact import Artifact
from glmc.program import Program
from glmc.runtime.image.kv import Past
from glmc.runtime.image.pipeline import ImageModel
from glmc.runtime.image.sharing import Sharing
from glmc.runtime.opened import read_programs
from glmc.runtime.ranks import Ranks
from glmc.target import Link
from glmc.topology import Rank, predict

BAR = 1.85
GLYPHS = 16
HOW = ("one process a rank, gloo over loopback as `glmc run --ranks` uses it, with every check on; contenders take turns in "
       "rounds, a sample is the seconds of one step (a run of several, over their number), the slowest rank's; ratios are of "
       "medians. foretold: a rank's rate is that of one rank's step by the operations of its program, the link's that of a "
       "joined tensor of the step's own size; nothing else is fitted")


def opened(ranks: Ranks, threads: int, out: str, side: int, steps: int, cfg: bool) -> Callable[[], tuple[float, list[float]]]:
    groups = ranks.groups(guidance=2, rows=ranks.size // 2) if cfg else {}  # type: ignore[attr-defined]
    model = ImageModel(Artifact.open(Path(out)), None, threads, ranks,
                       Sharing(ranks, groups.get("rows"), groups.get("guidance")))
    draw = torch.Generator().manual_seed(1)
    noise = torch.randn(1, model.sizes["channels"], side // 8, side // 8, generator=draw)
    texts = [torch.randn(1, GLYPHS, model.sizes["width"], generator=draw) for _ in range(2)]
    tokens = torch.randint(0, model.sizes["dit"]["vocabulary"], (side // 16, side // 16), generator=draw)

    def sample() -> tuple[float, list[float]]:
        torch.set_num_threads(threads)
        began = time.perf_counter()
        made = model.denoise(noise, texts, tokens, steps, 1.5, Past())
        return (time.perf_counter() - began) / steps, made.flatten()[::97].tolist()

    return sample


def joining(ranks: Ranks, threads: int, shape: tuple[int, ...], count: int) -> Callable[[], float]:
    """Seconds of one all_gather of a tensor of the shape, of `count`."""
    part = torch.randn(shape)

    def sample() -> float:
        began = time.perf_counter()
        for _ in range(count):
            ranks.all_gather(part, 1)
        return (time.perf_counter() - began) / count

    return sample


def foretold(program: Program, side: int, ranks: int, rate: float, link: Link) -> float:
    """Seconds of a step, which is two calls."""
    rows = side // 16
    letters = {"B": 1, "T": GLYPHS, "H": rows // ranks, "W": rows, "K": GLYPHS + rows * rows}
    return 2 * predict(program, letters, ranks, Rank(rate, 1e15), link).seconds


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__)
    for name, default in (("layers", 4), ("heads", 8), ("side", 512), ("steps", 2), ("rounds", 5)):
        ask.add_argument(f"--{name}", type=int, default=default)
    ask.add_argument("--dtype", default="float32")
    ask.add_argument("--target", default="cpu")
    ask.add_argument("--out", type=Path, default=default_out("denoising"))
    told = ask.parse_args()
    report = Report("denoising", told.out)
    samples: dict[str, list[float]] = {}
    values: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        pictures.write(scratch / "pipeline", {"num_layers": told.layers, "num_attention_heads": told.heads,
                                              "attention_head_dim": 64, "time_embed_dim": 256, "condition_dim": 64})
        out = scratch / "model.glmc"
        glmc.compile(scratch / "pipeline", out, target=told.target, dtype=told.dtype, max_len=64)
        program = read_programs(Artifact.open(out))["dit"]
        given: tuple[Any, ...] = (opened, str(out), told.side, told.steps)
        contenders = {"1 rank": Contender(1, 1, scratch / "1", *given, False),
                      "2 ranks, rows": Contender(2, 1, scratch / "2", *given, False),
                      "2 ranks, cfg": Contender(2, 1, scratch / "3", *given, True)}
        patches = (told.side // 16) ** 2
        shape = (1, patches // 2, told.heads, 64)
        gather = Contender(2, 1, scratch / "4", joining, shape, 8)
        joins = [max(gather.sample()) for _ in range(told.rounds)]
        gather.end()
        for number in range(told.rounds + 1):
            for name, contender in contenders.items():
                found = contender.sample()
                values[name] = found[0][1]
                if number:  # the first only warms
                    samples.setdefault(name, []).append(max(seconds for seconds, _ in found))
        for contender in contenders.values():
            contender.end()
    one, rows, cfg = (statistics.median(samples[name]) for name in contenders)
    link = Link(4 * told.heads * 64 * patches / 2 / statistics.median(joins), 0.0)
    rate = foretold(program, told.side, 1, 1.0, link) / one
    guess = foretold(program, told.side, 2, rate, link)
    apart = max(abs(a - b) for name in contenders for a, b in zip(values["1 rank"], values[name], strict=True))
    report.add("a step on one rank of one thread", one, "s", 1.0, "higher")
    report.add("two ranks that share rows over one", one / rows, "times", BAR, "higher")
    report.add("two ranks that share guidance's calls over one", one / cfg, "times")
    report.add("latents of ranks apart from one rank's, of the largest", apart / max(map(abs, values["1 rank"])), "", 1e-4)
    report.add("a step of two ranks that share rows, foretold over measured", guess / rows, "times")
    report.finish(HOW, {"layers": told.layers, "channels": told.heads * 64, "patches": patches, "dtype": told.dtype,
                        "target": told.target, "operations_per_second": rate, "join_s": summary(joins),
                        "samples": {name: summary(s) for name, s in samples.items()}})


if __name__ == "__main__":
    main()
