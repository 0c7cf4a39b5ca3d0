"""From a trace to proved sites: tidy, bring spellings to their normal form, join projections, prove every fusion."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from glmc.ledger import Ledger, scope_of
from glmc.passes.choose import Decision
from glmc.passes.declare import all_fusions
from glmc.passes.faster import Verdict
from glmc.passes.match import Found, Index, Matcher, Site
from glmc.passes.merge import Merged, merge
from glmc.passes.prove import kind
from glmc.passes.respell import respell
from glmc.passes.tidy import tidy
from glmc.trace import Trace
from glmc.trail import Trail


@dataclass(frozen=True)
class Searched:
    """What was found in one graph: the sites and nearest misses of every fusion, and the joined projections."""

    found: list[Found]
    merged: list[Merged]

    @property
    def sites(self) -> list[Site]:
        return [site for f in self.found for site in f.sites]


def find_sites(trace: Trace, trail: Trail, matcher: Matcher | None = None) -> Searched:
    """Bring the traced graph to its normal form, in place, and find the proved sites of every fusion in it."""
    matcher, fusions = matcher or Matcher(), all_fusions()
    trail.graph("traced", trace.graph)
    began = time.perf_counter()
    counts = tidy(trace.graph)
    near: dict[str, Found] = {}
    respelled = respell(trace.graph, fusions, matcher, near)
    merged = merge(trace)
    for name, count in tidy(trace.graph).items():
        counts[name] += count
    trail.say(2, f"tidy {time.perf_counter() - began:.3f} s: " + ", ".join(f"{k} {v}" for k, v in counts.items())
              + "".join(f"; {count} {name} respelled" for name, count in respelled.items())
              + f"; {len(merged)} projections joined")
    trail.graph("tidy", trace.graph)
    index, found = Index(trace.graph), []
    for fusion in fusions:
        began = time.perf_counter()
        found.append(matcher.find(fusion, index))
        for miss in near[fusion.name].misses.values() if fusion.name in near else ():
            found[-1].keep(miss)
        trail.say(2, f"match {fusion.name} {time.perf_counter() - began:.3f} s: {len(found[-1].sites)} sites")
        for miss in found[-1].misses.values():
            trail.say(3, f"  near miss at {miss.sentence()}")
    return Searched(found, merged)


def make_ledger(found: list[Found], promises: dict[str, dict[str, int]]) -> Ledger:
    """Promises against proved sites; the ledger holds the nearest miss of each that is broken."""
    ledger = Ledger()
    ledger.expect(promises)
    nearest: dict[str, dict[str, str]] = {}
    places: dict[str, list[str]] = {}
    for f in found:
        places.setdefault(f.fusion, []).extend(s.place for s in f.sites)
        for miss in sorted(f.misses.values(), key=lambda m: m.agreed):
            nearest.setdefault(f.fusion, {})[scope_of(miss.place)] = miss.sentence()
    for fusion, where in places.items():
        ledger.prove(fusion, where)
    ledger.check(nearest)
    return ledger


def record(ledger: Ledger, decisions: list[Decision], verdicts: dict[tuple, Verdict] | None = None) -> None:
    """Write what was taken and refused, and the predicted gain of what was taken, into the ledger.

    verdicts: kind of site -> how it fared on the device. The measured gain of a fusion is known where all of its sites were
    timed that were taken and run for each token of an answer.
    """
    gains: dict[str, list[float | None]] = {}
    taken: Counter[tuple] = Counter()
    for decision in decisions:
        row = ledger.row(decision.site.fusion)
        if decision.reason is None:
            row.taken += 1
            row.predicted_us = round((row.predicted_us or 0.0) + decision.gain_us, 3)
            if verdicts:
                taken[key := kind(decision.site)] += 1
                if key not in verdicts or verdicts[key].decodes:
                    gains.setdefault(row.fusion, []).append(verdicts[key].gain_us if key in verdicts else None)
        else:
            row.refused.append({"site": decision.site.place, "reason": decision.reason})
    for fusion, known in gains.items():
        if all(gain is not None for gain in known):
            ledger.row(fusion).measured_us = round(sum(gain for gain in known if gain is not None), 3)
    for key, verdict in (verdicts or {}).items():
        ledger.row(verdict.captured.fusion).timings.append(verdict.to_json(taken[key]))
