"""Fuse if faster: each distinct site that would be taken is timed against what would run in its place, and may be refused.

In its place run the plain steps one by one, or the smaller fusions that are proved inside it, whichever is faster. The rule:
a fusion is refused where a token of the answer takes longer with it, in any number of rows that is timed, and where a prompt
loses more than `WON_BACK` tokens of one row win back. What runs beside the text, once for an image or a step of a picture, wins
nothing back later: there a fusion is refused where any size that is timed takes longer. A difference within the noise is none.
What Inductor makes of the plain steps is timed as well and decides nothing: an artefact cannot hold its code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx

from glmc.graph import dtype_name
from glmc.kernels.timing import Figure
from glmc.passes.choose import Decision, choose
from glmc.passes.lower import Bounds
from glmc.passes.match import Site
from glmc.passes.prove import Captured, capture, cut, kind
from glmc.passes.rewrite import rewrite
from glmc.target import Target

WON_BACK = 128
"""Decoded tokens within which a slower prompt must be won back."""
NOISE = 0.03
"""A difference of this share, or within what the repeats of both spread, counts as none."""
_MERGED = 4
"""Patches that become one token, in every published tower that merges."""
CONTENDERS = {"ours": "ours", "plain": "plain steps", "smaller": "smaller fusions", "inductor": "Inductor"}
"""Contender -> how people are told of it."""


@dataclass(frozen=True)
class Bucket:
    """A form and sizes at which sites are timed. sizes: by letter. Of the text rows B, new tokens S, slots L, rows of media M;
    of a tower patches P, or tokens M that they become, and images F; of what makes pictures height H and width W, in patches
    or latents, tokens T of the text and keys K."""

    name: str
    sizes: dict[str, int]

    @property
    def decode(self) -> bool:
        return self.sizes.get("S") == 1


def buckets(bounds: Bounds) -> Iterator[Bucket]:
    """Of the text, decode of one row, which comes first, and of all; a short prompt and a long one."""
    slots = max(bounds.least, min(bounds.slots, 4096))
    for rows in sorted({1, bounds.max_batch}):
        yield Bucket(f"decode, {rows} {'row' if rows == 1 else 'rows'}", {"B": rows, "S": 1, "L": slots, "M": 1})
    for tokens in sorted({min(512, bounds.max_len), min(8192, bounds.max_len)}):
        yield Bucket(f"prefill, {tokens} tokens", {"B": 1, "S": tokens, "L": max(bounds.least, tokens), "M": tokens})


def beside(bounds: Bounds) -> Iterator[Bucket]:
    """Of a vision tower a small image and a large one, as far as a prompt holds what becomes of them; of what makes pictures
    a small one and a large one."""
    for patches in sorted({min(patches, _MERGED * bounds.max_len) for patches in (1024, 4096)}):
        yield Bucket(f"image, {patches} patches", {"P": patches, "M": patches // _MERGED, "F": 1})
    for side in (32, 64):
        yield Bucket(f"picture, {side} x {side}", {"B": 1, "T": 64, "H": side, "W": side, "K": 64 + side**2})


@dataclass(frozen=True)
class Piece:
    """A distinct site to be timed. smaller: its steps with the fusions that would be taken inside it, if there are any."""

    captured: Captured
    smaller: fx.Graph | None


@dataclass(frozen=True)
class Timing:
    """One distinct site in one bucket. figures: contender -> its time a call; reasons: contender -> why it has none."""

    bucket: Bucket
    figures: dict[str, Figure]
    reasons: dict[str, str]

    def gain(self) -> float | None:
        """Microseconds a call that ours is faster than what would run in its place; None where one was not timed."""
        rival = self.rival()
        return None if rival is None or "ours" not in self.figures else gained(self.figures["ours"], self.figures[rival])

    def rival(self) -> str | None:
        """The contender that would run in the place of ours."""
        there = [name for name in ("plain", "smaller") if name in self.figures]
        return min(there, key=lambda name: self.figures[name].us, default=None)

    def told(self) -> str:
        """ "decode, 1 row: ours 3.1 us, plain steps 2.9 us"."""
        names = ("ours", self.rival() or "plain")
        return f"{self.bucket.name}: " + ", ".join(f"{CONTENDERS[n]} {self.figures[n].us:.4g} us" for n in names)

    def to_json(self) -> dict[str, Any]:
        """Each contender's microseconds, null where `reasons` says why or there is none; the spread of the timed ones."""
        return {"bucket": self.bucket.name,
                **{f"{name}_us": self.figures[name].us if name in self.figures else None for name in CONTENDERS},
                "spread_us": {name: f.spread_us for name, f in self.figures.items()}, "reasons": self.reasons}


def gained(ours: Figure, other: Figure) -> float:
    """Microseconds by which ours is the faster; 0.0 within the noise."""
    gain = other.us - ours.us
    return gain if abs(gain) > max(NOISE * other.us, ours.spread_us + other.spread_us) else 0.0


Measure = Callable[[Piece, Bucket, dict[Any, int]], Timing]
"""(piece, bucket, the value of each of its symbols) -> its timing."""


@dataclass(frozen=True)
class Judge:
    """What times, and where. buckets: decode of one row before others of the text. done(n, of): n pieces of those known so far
    are timed."""

    buckets: tuple[Bucket, ...]
    measure: Measure
    done: Callable[[int, int], None] = lambda *counts: None

    def timings(self, piece: Piece, letters: dict[str, str]) -> tuple[Timing, ...]:
        """The piece in each bucket that knows all letters of its part; at least one timing, which may have only reasons."""
        fitting = [bucket for bucket in self.buckets if bucket.sizes.keys() >= set(letters.values())]
        if not fitting:
            unknown = ", ".join(sorted(letters.values()))
            return (Timing(Bucket("no bucket", {}), {}, {"inputs": f"none has the sizes {unknown}"}),)
        return tuple(_timed(piece, bucket, self.measure, letters) for bucket in fitting)


@dataclass(frozen=True)
class Verdict:
    """A distinct site, how it fared, and why it is refused, or None."""

    captured: Captured
    timings: tuple[Timing, ...]
    reason: str | None

    @property
    def decodes(self) -> bool:
        """Whether it runs for each token of an answer."""
        return self.timings[0].bucket.decode

    @property
    def gain_us(self) -> float | None:
        """Microseconds that ours is faster than the plain steps in the first bucket; None where one was not timed."""
        figures = self.timings[0].figures
        return figures["plain"].us - figures["ours"].us if {"ours", "plain"} <= figures.keys() else None

    def to_json(self, taken: int) -> dict[str, Any]:
        """taken: how many of the sites like it were taken."""
        scalars = {k: dtype_name(v) if str(v).startswith("torch.") else v for k, v in self.captured.scalars.items()}
        return {"shapes": self.captured.told(), "scalars": scalars, "sites": len(self.captured.places), "taken": taken,
                "buckets": [t.to_json() for t in self.timings]}


def refusal(timings: tuple[Timing, ...]) -> str | None:
    """Why a fusion that fared so is refused, by the rule of this module's docstring; None where it is kept."""
    for timing in timings:
        if "ours" in timing.reasons and timing.rival():
            return f"does not run here: {timing.bucket.name}: {timing.reasons['ours']}"
    answers = timings[0].bucket.decode
    back = WON_BACK * max(timings[0].gain() or 0.0, 0.0)
    for timing in sorted(timings, key=lambda t: not t.bucket.decode):
        loss = -(timing.gain() or 0.0)
        if loss > 0 and (timing.bucket.decode or not answers):
            return f"slower here: {timing.told()}"
        if loss > back:
            return f"slower here: {timing.told()}; {WON_BACK} tokens of the answer win back {back:.4g} us"
    return None


def settle(sites: list[Site], graph: fx.Graph, target: Target, taken: int = 0, judge: Judge | None = None,
           letters: dict[str, str] | None = None) -> tuple[list[Decision], dict[tuple, Verdict]]:
    """Choose, time what is chosen, refuse what is slower, and choose again until all that is chosen has been timed.

    Without a judge the predicted gain decides alone. letters: the tracer's symbol -> its letter, of all sizes of the part.
    Gives the decisions, and the verdict on each kind of site (`prove.kind`) that was timed. Nothing is rewritten.
    """
    verdicts: dict[tuple, Verdict] = {}

    def refuses(site: Site) -> str | None:
        found = verdicts.get(kind(site)) if verdicts else None
        return found.reason if found else None

    while True:
        decisions = choose(sites, graph, target, taken=taken, refuses=refuses)
        fresh: dict[tuple, Site] = {}
        for decision in decisions if judge is not None else ():
            if decision.reason is None and (key := kind(decision.site)) not in verdicts:
                fresh.setdefault(key, decision.site)
        if judge is None or not fresh:
            return decisions, verdicts
        known = len(verdicts) + len(fresh)
        for key, site in fresh.items():
            (captured,) = capture([s for s in sites if s.fusion == site.fusion and kind(s) == key])
            piece = Piece(captured, _smaller(site, sites, graph, target, refuses))
            timings = judge.timings(piece, letters or {})
            verdicts[key] = Verdict(captured, timings, refusal(timings))
            judge.done(len(verdicts), known)


def _timed(piece: Piece, bucket: Bucket, measure: Measure, letters: dict[str, str]) -> Timing:
    symbols = piece.captured.symbols()
    strange = [str(s) for s in symbols if letters.get(str(s)) not in bucket.sizes]
    if strange:
        return Timing(bucket, {}, {"inputs": f"the size {strange[0]} is none of the part's"})
    return measure(piece, bucket, {s: bucket.sizes[letters[str(s)]] for s in symbols})


def _smaller(site: Site, sites: list[Site], graph: fx.Graph, target: Target, refuses: Callable[[Site], str | None],
             ) -> fx.Graph | None:
    """The steps of a site with the fusions rewritten that would be taken inside it; None where there are none."""
    inside = [s for s in sites if s.nodes < site.nodes]
    chosen = [d.site for d in choose(inside, graph, target, refuses=refuses) if d.reason is None] if inside else []
    if not chosen:
        return None
    steps, _, new = cut(site)
    rewrite(steps, [Site(s.fusion, s.place, {k: new[n] for k, n in s.tensors.items()}, s.scalars,
                         frozenset(new[n] for n in s.nodes), tuple(new[o] for o in s.outputs)) for s in chosen])
    return steps


def notes(verdicts: dict[tuple, Verdict]) -> list[str]:
    """Where Inductor's code is faster than what runs, and which contenders have no figure, by fusion."""
    faster: dict[str, list[str]] = {}
    lacking: dict[tuple[str, str, str], list[str]] = {}
    for verdict in verdicts.values():
        fusion = verdict.captured.fusion
        for timing in verdict.timings:
            figures = timing.figures
            runs = "ours" if verdict.reason is None else timing.rival()
            if "inductor" in figures and runs in figures and gained(figures["inductor"], figures[runs]) > 0:
                faster.setdefault(fusion, []).append(f"{timing.bucket.name} ({figures['inductor'].us:.4g} us, "
                                                     f"{CONTENDERS[runs]} {figures[runs].us:.4g})")
            for name, reason in timing.reasons.items():
                lacking.setdefault((fusion, CONTENDERS.get(name, name), reason), []).append(timing.bucket.name)
    return [*(f"{fusion}: Inductor's code for the steps is faster, which an artefact cannot hold: {'; '.join(where)}"
              for fusion, where in sorted(faster.items())),
            *(f"{fusion}: not timed, {name}: {'; '.join(dict.fromkeys(where))}: {reason}"
              for (fusion, name, reason), where in sorted(lacking.items()))]
