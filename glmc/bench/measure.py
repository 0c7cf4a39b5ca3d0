"""A whole measurement: processes are opened, all take turns round after round; what was seen is kept if it is cut short."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from glmc.bench import energy
from glmc.bench.other_load import foreign_share, load_average, look
from glmc.bench.peer import Contender
from glmc.bench.process import Process
from glmc.bench.sample import Sample
from glmc.bench.turns import order, rounds
from glmc.bench.work import Work
from glmc.errors import GlmcError

PROBE = "probe"
Open = Callable[[Contender, int], Any]
Tell = Callable[[str], None]


@dataclass
class Measured:
    """All that was seen. samples: by contender and work, one a round. starts: by contender, the phases of each cold start.
    failed: who could not be measured to the end, and why. interrupted: after which round, None if it was not."""

    num_iters: int
    num_iters_warmup: int
    threads: int
    samples: dict[str, dict[Work, list[Sample]]] = field(default_factory=dict)
    ready: dict[str, dict[str, Any]] = field(default_factory=dict)
    memory: dict[str, dict[str, int | None]] = field(default_factory=dict)
    joules: dict[str, float] | None = None
    starts: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    probes: list[dict[str, Any]] = field(default_factory=list)
    foreign: list[float | None] = field(default_factory=list)
    load_before: list[float] = field(default_factory=list)
    load_after: list[float] = field(default_factory=list)
    profile: dict[str, Any] | None = None
    failed: dict[str, GlmcError] = field(default_factory=dict)
    interrupted: str | None = None
    seconds: float = 0.0


def measure(contenders: Sequence[Contender], asked: Sequence[Work], num_iters: int, num_iters_warmup: int, threads: int,
            device: str = "cpu", cold_starts: int = 3, profiled: bool = True, opening: Open = Process,
            tell: Tell = lambda _: None) -> Measured:
    """Open all, measure `num_iters` rounds of every kind of work, then cold starts, then the first contender's profile.

    An interrupt ends the measuring and not the report. Whoever fails is left out from then on, with the reason; if it is the
    first, its error is raised.
    """
    made = Measured(num_iters, num_iters_warmup, threads, load_before=load_average())
    began = time.perf_counter()
    probe = Contender(PROBE, PROBE, {"threads": threads, "device": device})
    running: dict[str, Any] = {}
    try:
        for one in (*contenders, probe):
            tell(f"open {one.name}")
            _guarded(made, contenders, one.name, running, partial(opening, one, threads))
        names = [one.name for one in contenders if one.name in running]
        made.ready = {name: running[name].ready for name in names}
        made.samples = {name: {work: [] for work in asked} for name in names}
        _rounds(made, contenders, running, names, asked, tell)
        if profiled:
            tell("profile")
            made.profile = running[contenders[0].name].profile(asked[0])
        _seen(made, running)
        _close(running)
        _cold_starts(made, [one for one in contenders if one.name in names], asked, cold_starts, opening, tell)
    except KeyboardInterrupt:
        if not made.ready:
            raise
        done = max((len(kept) for by in made.samples.values() for kept in by.values()), default=0)
        made.interrupted = f"interrupted after {done} of {num_iters} rounds"
        _seen(made, running)
    finally:
        _close(running)
    made.load_after, made.seconds = load_average(), time.perf_counter() - began
    return made


def _seen(made: Measured, running: dict[str, Any]) -> None:
    """Note what those who are still running say of themselves now."""
    for name in made.ready:
        if name in running:
            made.memory[name], made.ready[name] = running[name].memory, running[name].ready


def _close(running: dict[str, Any]) -> None:
    while running:
        running.popitem()[1].close()


def _guarded(made: Measured, contenders: Sequence[Contender], name: str, running: dict[str, Any], call: Callable[[], Any],
             ) -> Any:
    """What `call` gives; a new process joins `running`. A fault of another than the first and the probe is noted; it leaves."""
    try:
        given = call()
    except GlmcError as fault:
        if name in (contenders[0].name, PROBE):
            raise
        made.failed[name] = fault
        if name in running:
            running.pop(name).close()
        return None
    if name not in running:
        running[name] = given
    return given


def _rounds(made: Measured, contenders: Sequence[Contender], running: dict[str, Any], names: Sequence[str],
            asked: Sequence[Work], tell: Tell) -> None:
    found = energy.counters()
    made.joules = dict.fromkeys(names, 0.0) if found else None
    for number, turn in rounds(names, made.num_iters, made.num_iters_warmup):
        before = look([one.pid for one in running.values()])
        for place, work in enumerate(asked):
            for name in order(turn, place):
                if name not in running:
                    continue
                first = energy.read(found)
                sample = _guarded(made, contenders, name, running, partial(running[name].ask, work))
                if sample is None or number < 0:
                    continue
                made.samples[name][work].append(sample)
                if made.joules is not None:
                    made.joules[name] += energy.joules(found, first, energy.read(found))
        if number >= 0:
            made.probes.append(running[PROBE].probe())
            made.foreign.append(foreign_share(before, look([one.pid for one in running.values()])))
            tell(f"round {number + 1} of {made.num_iters}")


def _cold_starts(made: Measured, contenders: Sequence[Contender], asked: Sequence[Work], count: int, opening: Open, tell: Tell,
                 ) -> None:
    """Fresh processes until their first token, taking turns; files are in the page cache, since they were read just now."""
    able = [one for one in contenders if one.kind not in ("endpoint", "llama-bench") and one.name not in made.failed]
    first = Work(min(work.input_len for work in asked), 1)
    for number in range(count):
        for name in order([one.name for one in able], number):
            one = next(other for other in able if other.name == name)
            tell(f"cold start {number + 1} of {count}: {name}")
            process = opening(one, made.threads)
            try:
                taken = process.ask(first).seconds
                phases = {**process.phases}
                if process.ready["compiles"]:
                    again = process.ask(first).seconds
                    phases["compile"], taken = max(0.0, taken - again), again
                made.starts.setdefault(name, []).append({**phases, "first_token": taken})
            finally:
                process.close()
