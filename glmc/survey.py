"""What is known of a model before any weight is read: its sites, ledger, program, sizes, memory and roofline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import torch
from torch import nn

from glmc import axis_map, dit_part, families, picture_parts, published, vision_parts
from glmc.checkpoint.components import read_config
from glmc.errors import ConfigError, UsageError
from glmc.families import fields
from glmc.families.fields import Dims
from glmc.ledger import Ledger
from glmc.native.keeps import with_engines
from glmc.parts import Part, text_part
from glmc.passes.choose import Decision
from glmc.passes.faster import Judge, notes, settle
from glmc.passes.match import Matcher, Site
from glmc.passes.merge import fold
from glmc.passes.outline import outline
from glmc.passes.prove import Captured, capture
from glmc.passes.rewrite import rewrite
from glmc.program import PICTURE_MODES, Program
from glmc.sites import find_sites, make_ledger, record
from glmc.target import Target
from glmc.trace import trace, uncollected
from glmc.trail import Trail

Progress = Callable[[str, int, int], None]
_APART = ("native", "iree", "mlir")
"""Engines that run, or are handed, the text model alone; of the native one other parts too, where it can."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Survey:
    """A surveyed model.

    programs: part -> program. weights: parameter -> (dtype name, shape). joined: a parameter that the compiler made -> the
    published ones whose rows it holds, in order. captured: the steps that each distinct taken site replaced.
    """

    config: dict[str, Any]
    family: ModuleType
    dims: Dims
    dtype: str
    target: Target
    module: nn.Module
    ledger: Ledger
    decisions: list[Decision]
    programs: dict[str, Program]
    weights: dict[str, tuple[str, tuple[int, ...]]]
    joined: dict[str, tuple[str, ...]]
    captured: list[Captured]
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def program(self) -> Program:
        """The text model's, which is what an artefact runs."""
        return self.programs["text"]


def dtype_of(config: dict[str, Any], asked: str, target: Target | None = None) -> str:
    """The dtype name to compile for: what is asked, or what the configuration says ("auto"), or the one that the target has."""
    if target is not None and target.dtype is not None and asked in ("auto", *DTYPES):
        if asked not in ("auto", target.dtype):
            raise UsageError("the target computes in one dtype", field="dtype", expected=f"auto, {target.dtype}",
                             found=f"{asked} for {target.name}")
        return target.dtype
    said = config.get("dtype", config.get("torch_dtype", "bfloat16")) if asked == "auto" else asked
    if said == "float16":
        raise ConfigError("float16 weights are compiled as float32 or bfloat16, not as they are", file="config.json",
                          field="torch_dtype", expected="--dtype float32 or --dtype bfloat16", found=said)
    if said not in DTYPES:
        raise UsageError("no such dtype", field="dtype", expected=f"auto, {', '.join(DTYPES)}", found=said)
    return said


def parts_of(config: dict[str, Any], dtype: torch.dtype) -> tuple[nn.Module, list[Part]]:
    """The published model and its parts: the text model first, then what stands beside it."""
    if "_class_name" in config:
        model = dit_part.build(config, dtype)
        return model, [dit_part.dit_part(model, dtype)]
    model = published.build(config, dtype)
    own = [text_part(model, dtype), *vision_parts.parts(model, dtype)]
    if "components" not in config:
        return model, own
    whole, others = picture_parts.parts(config["components"], dtype)
    for name, module in model.named_children():
        whole.add_module(name, module)
    return whole, [replace(part, mode=PICTURE_MODES[part.name]) for part in [*own, *others]]


@uncollected()
def survey(source: Any, target: Target, dtype: str = "auto", progress: Progress = lambda *_: None,
           judge: Judge | None = None) -> Survey:
    """Read config, trace on meta, tidy, prove, check promises, choose, rewrite, outline. Reads no weights.

    judge: what times fusions on the target's device; without one the predicted gain decides.
    """
    began = time.perf_counter()
    seconds: dict[str, float] = {}

    def lap(stage: str) -> None:
        seconds[stage] = round(time.perf_counter() - began - sum(seconds.values()), 3)
        progress(stage, 1, 1)

    config = read_config(source)
    family = families.load(config, source)
    dims = family.read(config)
    name = dtype_of(config, dtype, target)
    progress("trace", 0, 1)
    module, pieces = parts_of(config, DTYPES[name])
    traces = [(part, trace(part.module, part.args, part.dynamic)) for part in pieces]
    lap("trace")
    progress("match", 0, 1)
    trail, matcher = Trail(), Matcher()
    searched = [find_sites(traced, trail, matcher) for _, traced in traces]
    ledger = make_ledger([f for s in searched for f in s.found], family.promises(dims))
    lap("match")
    progress("choose", 0, 1)
    decisions: list[Decision] = []
    chosen: list[list[Site]] = []
    timed: list[str] = []
    for (part, traced), here in zip(traces, searched, strict=True):
        decided, verdicts = settle(here.sites, traced.graph, target, sum(map(len, chosen)), judge, part.symbols(traced))
        chosen.append([d.site for d in decided if d.reason is None])
        record(ledger, decided, verdicts)
        timed += notes(verdicts)
        decisions += decided
    trail.say(1, ledger.text())
    lap("choose")
    progress("rewrite", 0, 1)
    programs: dict[str, Program] = {}
    joined: dict[str, tuple[str, ...]] = {}
    captured: list[Captured] = []
    for (part, traced), here, taken in zip(traces, searched, chosen, strict=True):
        captured += capture(taken)
        rewrite(traced.graph, taken)
        joined |= fold(traced, here.merged)
        trail.graph(f"rewritten {part.name}", traced.graph)
        programs[part.name] = outline(traced, part.symbols(traced), part.names, part.name, part.mode)
    programs, engines = with_engines(programs, target.engine) if target.engine in _APART else (programs, [])
    lap("rewrite")
    wide = dtype == "auto" and dtype_of(config, "auto") != name
    said = [*axis_map.notes(dims.layout), *fields.notes(dims), *ledger.surplus(), *timed, *engines,
            *([f"weights are made {name}, which {target.name} computes in"] if wide else [])]
    return Survey(config, family, dims, name, target, module, ledger, decisions, programs, weights_of(programs.values()),
                  joined, captured, notes=said, seconds=seconds)


def weights_of(programs: Iterable[Program]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Parameter -> (dtype name, shape), over all these parts."""
    return {n.removeprefix("weight:"): (spec.dtype, tuple(int(s) for s in spec.shape))
            for program in programs for step in program.steps if not step.moves
            for n, (_, role, spec) in zip(step.inputs, program.regions[step.region].inputs, strict=True)
            if role == "weight"}
