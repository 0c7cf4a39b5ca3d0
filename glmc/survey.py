"""What is known of a model before any weight is read: its sites, ledger, program, sizes, memory and roofline."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import nn

from glmc import families, published
from glmc.checkpoint.folder import read_config
from glmc.errors import ConfigError, UsageError
from glmc.families.fields import Dims
from glmc.ledger import Ledger, scope_of
from glmc.passes.choose import Decision, choose
from glmc.passes.declare import all_fusions
from glmc.passes.match import Found, Matcher
from glmc.passes.outline import outline
from glmc.passes.rewrite import rewrite
from glmc.passes.tidy import tidy
from glmc.program import Program
from glmc.target import Target
from glmc.trace import Trace
from glmc.trail import Trail

Progress = Callable[[str, int, int], None]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Survey:
    """A surveyed model. `parameters` of the program: name -> (dtype name, shape)."""

    config: dict[str, Any]
    family: ModuleType
    dims: Dims
    dtype: str
    target: Target
    module: nn.Module
    ledger: Ledger
    decisions: list[Decision]
    program: Program
    weights: dict[str, tuple[str, tuple[int, ...]]]
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def dtype_of(config: dict[str, Any], asked: str) -> str:
    """The dtype name to compile for: what is asked, or what the configuration says ("auto")."""
    said = config.get("dtype", config.get("torch_dtype", "bfloat16")) if asked == "auto" else asked
    if said == "float16":
        raise ConfigError("float16 weights are compiled as float32 or bfloat16, not as they are", file="config.json",
                          field="torch_dtype", expected="--dtype float32 or --dtype bfloat16", found=said)
    if said not in DTYPES:
        raise UsageError("no such dtype", field="dtype", expected=f"auto, {', '.join(DTYPES)}", found=said)
    return said


def find_sites(trace: Trace, trail: Trail) -> list[Found]:
    """Tidy the traced graph and find the proved sites of every fusion."""
    trail.graph("traced", trace.graph)
    began = time.perf_counter()
    counts = tidy(trace.graph)
    trail.say(2, f"tidy {time.perf_counter() - began:.3f} s: " + ", ".join(f"{k} {v}" for k, v in counts.items()))
    trail.graph("tidy", trace.graph)
    matcher, found = Matcher(), []
    for fusion in all_fusions():
        began = time.perf_counter()
        found.append(matcher.find(fusion, trace.graph))
        trail.say(2, f"match {fusion.name} {time.perf_counter() - began:.3f} s: {len(found[-1].sites)} sites")
        for miss in found[-1].misses.values():
            trail.say(3, f"  near miss at {miss.sentence()}")
    return found


def make_ledger(found: list[Found], promises: dict[str, dict[str, int]]) -> Ledger:
    """Promises against proved sites. Raises PromiseBroken with the nearest misses."""
    ledger = Ledger()
    ledger.expect(promises)
    nearest: dict[str, dict[str, str]] = {}
    for f in found:
        ledger.prove(f.fusion, [s.place for s in f.sites])
        for miss in sorted(f.misses.values(), key=lambda m: m.agreed):
            nearest.setdefault(f.fusion, {})[scope_of(miss.place)] = miss.sentence()
    ledger.check(nearest)
    return ledger


def record(ledger: Ledger, decisions: list[Decision]) -> None:
    """Write what was taken and refused, and the predicted gain of what was taken, into the ledger."""
    for decision in decisions:
        row = ledger.row(decision.site.fusion)
        if decision.reason is None:
            row.taken += 1
            row.predicted_us = round((row.predicted_us or 0.0) + decision.gain_us, 3)
        else:
            row.refused.append({"site": decision.site.place, "reason": decision.reason})


def survey(source: Any, target: Target, dtype: str = "auto", progress: Progress = lambda *_: None) -> Survey:
    """Read config, trace on meta, tidy, prove, check promises, choose, rewrite, outline. Reads no weights."""
    began = time.perf_counter()
    seconds: dict[str, float] = {}

    def lap(stage: str) -> None:
        seconds[stage] = round(time.perf_counter() - began - sum(seconds.values()), 3)
        progress(stage, 1, 1)

    config = read_config(source)
    family = families.load(config, source)
    dims = family.read(config)
    name = dtype_of(config, dtype)
    progress("trace", 0, 1)
    module = published.build(config, DTYPES[name])
    trace, symbols = published.trace_model(module, DTYPES[name], dims.layers, dims.kv_heads, dims.head_dim)
    lap("trace")
    progress("match", 0, 1)
    trail = Trail()
    found = find_sites(trace, trail)
    ledger = make_ledger(found, family.promises(dims))
    decisions = choose([s for f in found for s in f.sites], trace.graph, target)
    record(ledger, decisions)
    rewrite(trace.graph, [d.site for d in decisions if d.reason is None])
    trail.graph("rewritten", trace.graph)
    trail.say(1, ledger.text())
    program = outline(trace, symbols)
    lap("match")
    weights = {n.removeprefix("weight:"): (spec.dtype, tuple(int(s) for s in spec.shape))
               for step in program.steps
               for n, (_, role, spec) in zip(step.inputs, program.regions[step.region].inputs, strict=True)
               if role == "weight"}
    return Survey(config, family, dims, name, target, module, ledger, decisions, program, weights,
                  notes=ledger.surplus(), seconds=seconds)
