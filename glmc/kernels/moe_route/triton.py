"""Sigmoid routing: one token a program, its experts' scores in registers, the best taken one after the other.

E experts (LANES the power of two above) in GROUPS of which KEPT stay; TOP are chosen.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from glmc.kernels import too_wide
from glmc.kernels.triton import launch, power, warps_for

MOST = 4096
"""Experts whose scores one program still holds."""


def accepts(site) -> str | None:
    return too_wide("a row of experts", site["logits"][1][-1], MOST)


@triton.jit
def kept_groups(choice, lane, E: tl.constexpr, GROUPS: tl.constexpr, KEPT: tl.constexpr, SLOTS: tl.constexpr):
    """The choices of the groups whose two best sum highest; minus infinity elsewhere."""
    group = lane // (E // GROUPS)
    slot = tl.arange(0, SLOTS)
    best = tl.full((SLOTS,), float("-inf"), tl.float32)
    for number in tl.static_range(GROUPS):
        here = tl.where((group == number) & (lane < E), choice, float("-inf"))
        first = tl.argmax(here, axis=0)
        pair = tl.max(here, axis=0) + tl.max(tl.where(lane == first, float("-inf"), here), axis=0)
        best = tl.where(slot == number, pair, best)
    allowed = group < 0
    for _ in tl.static_range(KEPT):
        at = tl.argmax(best, axis=0)
        allowed = allowed | (group == at)
        best = tl.where(slot == at, float("-inf"), best)
    return tl.where(allowed, choice, float("-inf"))


@triton.jit
def moe_route_kernel(logits, bias, weights, experts, scale, E: tl.constexpr, LANES: tl.constexpr, GROUPS: tl.constexpr,
                     KEPT: tl.constexpr, SLOTS: tl.constexpr, TOP: tl.constexpr, CHOSEN: tl.constexpr,
                     NORMALISE: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    inside = lane < E
    score = tl.sigmoid(tl.load(logits + token * E + lane, mask=inside, other=0.0))
    choice = tl.where(inside, score + tl.load(bias + lane, mask=inside, other=0.0), float("-inf"))
    if KEPT < GROUPS:
        choice = kept_groups(choice, lane, E, GROUPS, KEPT, SLOTS)
    place = tl.arange(0, CHOSEN)
    chosen, weight = tl.zeros((CHOSEN,), tl.int32), tl.zeros((CHOSEN,), tl.float32)
    for number in tl.static_range(TOP):
        at = tl.minimum(tl.argmax(choice, axis=0), E - 1)
        chosen = tl.where(place == number, at, chosen)
        weight = tl.where(place == number, tl.sum(tl.where(lane == at, score, 0.0), axis=0), weight)
        choice = tl.where(lane == at, float("-inf"), choice)
    if NORMALISE:
        weight = weight / (tl.sum(weight, axis=0) + 1e-20)
    out = token * TOP + place
    tl.store(weights + out, weight * scale, mask=place < TOP)
    tl.store(experts + out, chosen.to(tl.int64), mask=place < TOP)


def run(logits: torch.Tensor, bias: torch.Tensor, *, groups: int, kept: int, top: int, normalise: bool, scale: float,
        ) -> tuple[torch.Tensor, torch.Tensor]:
    """logits float32 [T, E], bias float32 [E] -> weights float32 [T, top] and experts int64 [T, top], in no set order."""
    tokens, count = logits.shape
    weights = torch.empty((tokens, top), dtype=torch.float32, device=logits.device)
    experts = torch.empty((tokens, top), dtype=torch.int64, device=logits.device)
    launch(moe_route_kernel, (tokens,), logits.contiguous(), bias, weights, experts, float(scale), E=count, LANES=power(count),
           GROUPS=groups, KEPT=kept, SLOTS=power(groups), TOP=top, CHOSEN=power(top), NORMALISE=normalise,
           warps=warps_for(power(count)))
    return weights, experts
