"""Choosing tokens on a GPU from rows of 151,552 logits: our kernels beside torch's, which sort a vocabulary for top-p."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gpu_clock
import torch
from measure import summary
from report import Report, default_out

from glmc import kernels
from glmc.kernels.timing import microseconds

VOCABULARY, SETS, NEVER = 151_552, 4, 1.0
_WARM, _TOP_K, _TOP_P = {"temperature": 0.8}, {"top_k": 50}, {"top_p": 0.95}
WAYS: dict[str, dict[str, Any]] = {"greedy": {}, "temperature": _WARM, "top-k": _WARM | _TOP_K, "top-p": _WARM | _TOP_P,
                                   "top-k and top-p": _WARM | _TOP_K | _TOP_P}
"""How tokens are chosen -> the options of the kernels."""
SPREADS = {"peaked": 4.0, "flat": 0.5}
"""Standard deviation of the random logits: with the greater one few tokens have most of the mass."""
HOW = ("microseconds for all rows, in device graphs of calls that go round sets of logits, medians of 15 replays; normally "
       "distributed logits, temperature 0.8, top-k 50, top-p 0.95. torch: the steps that glmc took before it had kernels for "
       "this, results stacked for the host as they were. The host's time is not in it")


def greedy(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row of [B, V] the lowest index among equal maxima, int64 [B], and the maximum [B]."""
    best, last = scores.amax(-1, keepdim=True), scores.shape[-1] - 1
    index = torch.arange(last + 1, device=scores.device)
    return torch.where(scores == best, index, last).amin(-1), best.squeeze(-1)


def drawn(scores: torch.Tensor, uniforms: torch.Tensor, top_k: int, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """One token a row, int64 [B], by the inverse cumulative distribution of what top-k, then top-p leave; and its total [B]."""
    if 0 < top_k < scores.shape[-1]:
        scores = scores.masked_fill(scores < scores.topk(top_k).values[:, -1:], -math.inf)
    weights, order = torch.softmax(scores, -1), None
    if top_p < 1:
        weights, order = weights.sort(stable=True)
        goes = weights.double().cumsum(-1).float() <= 1 - top_p
        goes[:, -1] = False
        weights = weights.masked_fill(goes, 0)
    cumulative = weights.double().cumsum(-1)
    totals = cumulative[:, -1]
    found = torch.searchsorted(cumulative, (uniforms * totals).unsqueeze(-1), right=True).clamp_(max=scores.shape[-1] - 1)
    return (found if order is None else order.gather(-1, found)).squeeze(-1), totals


def by_torch(logits: torch.Tensor, seen: torch.Tensor | None, uniforms: torch.Tensor | None, *, penalty: float = 1.0,
             temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernels give, in torch's steps: tokens int64 [B], and what the host is told, float64 [2 or 3, B]."""
    scores = logits.float()
    tokens, values = greedy(logits)
    told = [values]
    if seen is not None:
        scores = torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
    if uniforms is not None:
        tokens, total = drawn(scores / temperature, uniforms, top_k, top_p)
        told.append(total)
    elif seen is not None:
        tokens, values = greedy(scores)
        told.append(values)
    return tokens, torch.stack([t.double() for t in (tokens, *told)])


def given(rows: int, dtype: torch.dtype, spread: float, penalty: bool, drawing: bool, device: str, vocabulary: int = VOCABULARY,
          ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Random logits, a mask of what was seen or None, and uniform numbers or None."""
    logits = (torch.randn(rows, vocabulary, device=device) * spread).to(dtype)
    seen = torch.rand(rows, vocabulary, device=device) < 0.01 if penalty else None
    return logits, seen, torch.rand(rows, dtype=torch.float64, device=device) if drawing else None


def alike(call: Callable, other: Callable, sets: list[tuple], options: dict[str, Any]) -> float:
    """The share of tokens in which two ways agree."""
    same = [(call(*one, **options)[0] == other(*one, **options)[0]).double().mean().item() for one in sets]
    return statistics.mean(same)


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", default="1,8,64")
    options.add_argument("--ways", default=",".join(WAYS), help="how tokens are chosen, separated by commas")
    options.add_argument("--dtypes", default="float32,bfloat16")
    options.add_argument("--out", type=Path, default=default_out("gpu/sampling"))
    asked = options.parse_args(arguments)
    asked.rows = [int(rows) for rows in asked.rows.split(",")]
    asked.ways = asked.ways.split(",")
    asked.dtypes = [getattr(torch, name) for name in asked.dtypes.split(",")]
    if unknown := [way for way in asked.ways if way not in WAYS]:
        options.error(f"no such way: {unknown[0]}; there are {', '.join(WAYS)}")
    return asked


@torch.no_grad()
def main() -> None:
    asked = parsed()
    report = Report("gpu_sampling", asked.out)
    details: dict[str, Any] = {"device": gpu_clock.device(), "us": {}}
    ours = kernels.load("sample", "triton").run
    for way in asked.ways:
        for rows in asked.rows:
            for dtype in asked.dtypes:
                for spread in SPREADS if way != "greedy" else ("peaked",):
                    for penalty in (False, True) if dtype == torch.bfloat16 else (False,):
                        options = WAYS[way] | ({"penalty": 1.1} if penalty else {})
                        sets = [given(rows, dtype, SPREADS[spread], penalty, "temperature" in options, "cuda")
                                for _ in range(SETS)]
                        name = f"{way}, {rows} rows, {str(dtype)[6:]}, {spread}{', penalty' if penalty else ''}"
                        mine, theirs = (microseconds([partial(call, *one, **options) for one in sets])
                                        for call in (ours, by_torch))
                        report.add(f"{name}, torch's time over ours", statistics.median(theirs) / statistics.median(mine), "x",
                                   NEVER, "higher")
                        details["us"][name] = {"ours": summary(mine, 2), "torch": summary(theirs, 2),
                                               "same_tokens": alike(ours, by_torch, sets, options)}
        report.finish(HOW, details)


if __name__ == "__main__":
    main()
