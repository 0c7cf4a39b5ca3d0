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
from glmc.drawing import Before, drawing
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
from glmc.passes.outline import Lines, outline
from glmc.passes.prove import Captured, capture
from glmc.passes.rewrite import rewrite
from glmc.program import FX, MAIN, PICTURE_MODES, Program
from glmc.sites import find_sites, make_ledger, record
from glmc.target import Target
from glmc.trace import trace, uncollected
from glmc.trail import Trail

Progress = Callable[[str, int, int], None]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Survey:
    """A surveyed model.

    programs: part -> program. weights: parameter -> (dtype name, shape). joined: a parameter that the compiler made -> the
    published ones whose rows it holds, in order. captured: the steps that each distinct taken site replaced, by the target
    whose kernels took it.
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
    captured: dict[Target, list[Captured]]
    drawing: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def program(self) -> Program:
        """The text model's, which is what an artefact runs."""
        return self.programs["text"]


def dtype_of(config: dict[str, Any], asked: str, target: Target) -> str:
    """The dtype name to compile for: what is asked, or what the configuration says ("auto"), or where the target does not
    compute in that, what it does."""
    said = config.get("dtype", config.get("torch_dtype", "bfloat16")) if asked == "auto" else asked
    if said == "float16":
        raise ConfigError("float16 weights are compiled as float32 or bfloat16, not as they are", file="config.json",
                          field="torch_dtype", expected="--dtype float32 or --dtype bfloat16", found=said)
    if said not in DTYPES:
        raise UsageError("no such dtype", field="dtype", expected=f"auto, {', '.join(DTYPES)}", found=said)
    if said not in target.dtypes and asked != "auto":
        raise UsageError(f"the target {target.name} does not compute in this dtype", field="dtype", found=said,
                         expected=f"auto, {', '.join(target.dtypes)}")
    return said if said in target.dtypes else target.dtypes[0]


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
    beside = target.beside()
    befores: list[Before] = []
    for (part, traced), here in zip(traces, searched, strict=True):
        runs = target if part.name == MAIN else beside
        decided, verdicts = settle(here.sites, traced.graph, runs, sum(map(len, chosen)), judge, part.symbols(traced))
        chosen.append([d.site for d in decided if d.reason is None])
        record(ledger, decided, verdicts)
        timed += notes(verdicts)
        decisions += decided
        befores.append(Before(part, traced, decided))
    trail.say(1, ledger.text())
    lap("choose")
    progress("rewrite", 0, 1)
    programs: dict[str, Program] = {}
    joined: dict[str, tuple[str, ...]] = {}
    captured: dict[Target, list[Captured]] = {}
    spelled: dict[str, Lines] = {part.name: {} for part, _ in traces}
    for (part, traced), here, taken in zip(traces, searched, chosen, strict=True):
        captured.setdefault(target if part.name == MAIN else beside, []).extend(capture(taken))
        rewrite(traced.graph, taken)
        joined |= fold(traced, here.merged)
        trail.graph(f"rewritten {part.name}", traced.graph)
        programs[part.name] = outline(traced, part.symbols(traced), part.names, part.name, part.mode, spelled[part.name])
    programs, engines = with_engines(programs) if target.engine == "native" else (programs, [])
    if beside != target:
        programs, engines = _beside(programs, target)
    drawn = drawing(((before, programs[part.name], spelled[part.name])
                     for before, (part, _) in zip(befores, traces, strict=True)), target)
    lap("rewrite")
    if dtype == "auto" and (published_in := dtype_of(config, dtype, beside)) != name:
        engines = [*engines, f"weights are made {name}: the target {target.name} does not compute in {published_in}"]
    said = [*axis_map.notes(dims.layout), *fields.notes(dims), *ledger.surplus(), *timed, *engines]
    return Survey(config, family, dims, name, target, module, ledger, decisions, programs, weights_of(programs.values()),
                  joined, captured, drawn, notes=said, seconds=seconds)


def _beside(programs: dict[str, Program], target: Target) -> tuple[dict[str, Program], list[str]]:
    """The parts beside the text on engine `fx`, and a note about each."""
    made = {name: program if name == MAIN else replace(program, engine=FX) for name, program in programs.items()}
    return made, [f"{name} runs on engine {FX}: the target {target.name} is written for the text model" for name in made
                  if name != MAIN]


def weights_of(programs: Iterable[Program]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Parameter -> (dtype name, shape), over all these parts."""
    return {n.removeprefix("weight:"): (spec.dtype, tuple(int(s) for s in spec.shape))
            for program in programs for step in program.steps if not step.moves
            for n, (_, role, spec) in zip(step.inputs, program.regions[step.region].inputs, strict=True)
            if role == "weight"}
