"""Choose which proved sites to take: a kernel must accept, the gain must be positive, and no two may share a step.

The gain is what disappears: the bytes of the intermediates, written and read once, over the target's bandwidth, and the
launches saved. Sites are taken by falling gain (ties by name), so fusions have no order; who was outbid is told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from glmc import kernels, knobs
from glmc.graph import region_of, size_at_one
from glmc.passes.match import Site
from glmc.target import Target


@dataclass(frozen=True)
class Decision:
    """A site with its predicted gain (microseconds a token); `reason` is None when it is taken."""

    site: Site
    gain_us: float
    reason: str | None


def predicted_us(site: Site, target: Target) -> float:
    """Microseconds saved for one token, by the rule of this module's docstring."""
    hidden = site.nodes - set(site.outputs)
    bytes_saved = sum(2 * size_at_one(n.meta["val"]) for n in hidden if isinstance(n.meta.get("val"), torch.Tensor))
    return bytes_saved / target.bandwidth * 1e6 + (len(site.nodes) - 1) * target.launch_us


def _refusal(site: Site, target: Target, regions: dict[fx.Node, str]) -> str | None:
    if not kernels.has(site.fusion, target.machine):
        return f"no kernel for {target.name}: glmc/kernels/{site.fusion} has no {target.machine}.py"
    crossed = sorted({regions[n] for n in site.nodes})
    if len(crossed) > 1:
        return f"crosses the cut between {' and '.join(crossed)}"
    only = knobs.get("GLMC_ONLY")
    if only and site.fusion not in only:
        return "GLMC_ONLY leaves it out"
    return kernels.load(site.fusion, target.machine).accepts(site.seen())


def choose(sites: list[Site], graph: fx.Graph, target: Target, whole: bool = False, taken: int = 0,
           refuses: Callable[[Site], str | None] = lambda site: None) -> list[Decision]:
    """One decision a site, in the order of `sites`.

    whole: the graph is never cut into regions. taken: how many sites the compilation took before, for its fuel.
    refuses: what else the caller holds against a site.
    """
    regions = dict.fromkeys(graph.nodes, "all") if whole else region_of(graph)
    fuel = knobs.get("GLMC_FUEL")
    gains = [predicted_us(s, target) for s in sites]
    order = sorted(range(len(sites)), key=lambda i: (-gains[i], sites[i].fusion, i))
    owner: dict[fx.Node, Site] = {}
    reasons: dict[int, str | None] = {}
    for i in order:
        site = sites[i]
        reason = _refusal(site, target, regions) or refuses(site)
        rival = next((owner[n] for n in sorted(site.nodes, key=lambda n: n.name) if n in owner), None)
        if reason is None and rival is not None:
            reason = f"shares steps with {rival.fusion} at {rival.place}, which gains more"
        if reason is None and 0 <= fuel <= taken:
            reason = f"GLMC_FUEL={fuel} is spent"
        if reason is None:
            owner.update(dict.fromkeys(site.nodes, site))
            taken += 1
        reasons[i] = reason
    return [Decision(s, gains[i], reasons[i]) for i, s in enumerate(sites)]
