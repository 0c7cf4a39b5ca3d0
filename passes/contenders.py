"""What is timed at a distinct site: our kernel, the steps that it replaces one by one, smaller fusions in them, and Inductor's
code for them, on random inputs of the sizes that a running model has.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from glmc import gpu, kernels, knobs
from glmc.kernels.timing import Clock, Figure, GpuClock
from glmc.passes.declare import Maths, load
from glmc.passes.emit import target_name
from glmc.passes.faster import Bucket, Judge, Piece, Timing, beside, buckets
from glmc.passes.hostile import concrete
from glmc.passes.lower import Bounds
from glmc.passes.prove import Captured
from glmc.passes.replay import Tensors
from glmc.region import FACTORIES, REPLACED, resolve
from glmc.target import Target

INDUCTOR_SECONDS = 60.0
"""What compiling and timing Inductor's code may take in all; pieces after that have no figure of it."""
_INDUCTORS = {"glmc.grouped_mm": lambda x, weight, ends: functional.grouped_mm(x, weight, offs=ends)}
"""Steps that stand for one of torch's own -> that one, which Inductor knows."""
_META = torch.device("meta")


def runnable(graph: fx.Graph, call: Callable[[str], Callable], device: torch.device) -> fx.GraphModule:
    """Captured steps as a module. call: the name of a step -> what it calls."""
    made = fx.Graph()
    made.output(made.graph_copy(graph, {}))
    for node in made.nodes:
        if node.op == "call_function":
            name = target_name(node)
            node.target = call(name)
            if name in FACTORIES:
                node.kwargs = {**node.kwargs, "device": device}
        node.meta = {}
    return fx.GraphModule(nn.Module(), made)


def as_engine_fx(machine: str) -> Callable[[str], Callable]:
    """What engine `fx` calls for a step on a machine, by its name."""
    return lambda name: resolve(REPLACED.get(machine, {}).get(name, name), machine)


def inputs(captured: Captured, values: dict[Any, int], device: torch.device, seed: int) -> Tensors:
    """The tensors of a site as a running model has them, drawn on `device`: positions and slots in order, a causal mask,
    other integers below their bound, no two alike in a row. Dims lie in memory in the order in which they were traced.
    """
    draw = torch.Generator(device).manual_seed(seed)
    maths = load(captured.fusion).maths
    sizes = {name: concrete(shape, values) for name, (_, shape) in captured.shapes.items()}
    made: Tensors = {}
    for name, (dtype, _) in captured.shapes.items():
        shape = sizes[name]
        strides = concrete(captured.strides[name], values)
        order = sorted(range(len(shape)), key=[-stride for stride in strides].__getitem__)
        if dtype.is_floating_point:
            drawn = torch.randn([shape[d] for d in order], generator=draw, dtype=dtype, device=device)
            made[name] = drawn.permute([order.index(d) for d in range(len(shape))])
        elif dtype is torch.bool:
            seen = torch.ones(shape[-2:], dtype=dtype, device=device).tril(shape[-1] - shape[-2])
            made[name] = seen.expand(shape).contiguous()
        else:
            made[name] = _integers(name, maths, sizes, draw).to(dtype)
    return made | {name: made[one] for name, one in captured.twins.items()}


def _integers(name: str, maths: Maths, sizes: dict[str, list[int]], draw: torch.Generator) -> torch.Tensor:
    shape, below = sizes[name], maths.tensors[name].below
    if below is None:
        return torch.arange(shape[-1], device=draw.device).expand(shape).contiguous()
    known: Any = maths.dims({k: tuple(v) for k, v in sizes.items()})
    return torch.rand((*shape[:-1], known[below]), generator=draw, device=draw.device).topk(shape[-1], dim=-1).indices


class Race:
    """Times pieces for a target with a clock. backend: what compiles the steps, of torch.compile's.

    built: the kernels of a GPU, as an artefact would hold them; without it they run as the caller has arranged.
    """

    def __init__(self, target: Target, clock: Clock, backend: str = "inductor", built: Any = None) -> None:
        self._target, self._clock, self._backend, self._built = target, clock, backend, built
        self._spent = 0.0

    def __call__(self, piece: Piece, bucket: Bucket, values: dict[Any, int]) -> Timing:
        """The piece's timing. A contender that fails has its reason. Raises RuntimeError where the device is lost."""
        figures: dict[str, Figure] = {}
        reasons: dict[str, str] = {}
        try:
            drawn = self._drawn(piece.captured, values)
        except torch.OutOfMemoryError:
            reasons["inputs"] = "they do not fit the free memory"
            drawn = []
        meta = self._calls(piece, values, _META)
        for name, call in self._calls(piece, values, self._clock.device).items() if drawn else ():
            try:
                figures[name] = self._timed(call, drawn, meta[name])
            except Exception as fault:
                reasons[name] = said(fault)
        if drawn and self._spent > INDUCTOR_SECONDS:
            reasons["inductor"] = f"compiling for it has taken {INDUCTOR_SECONDS:.0f} s already"
        elif drawn:
            began = time.perf_counter()
            try:
                figures["inductor"] = self._clock(self._compiled(piece, values), drawn)
            except Exception as fault:
                reasons["inductor"] = said(fault)
            self._spent += time.perf_counter() - began
        del drawn
        self._clock.recover()
        return Timing(bucket, figures, reasons)

    def starts(self) -> str | None:
        """Why no kernel of ours starts on the clock's device, None where one does."""
        run = kernels.load("silu_mul", self._target.machine).run
        gate = torch.ones((1, 16), device=self._clock.device)
        try:
            self._timed(lambda tensors: run(*tensors.values()), [{"gate": gate, "up": gate}],
                        lambda tensors: run(*tensors.values()))
        except Exception as fault:
            return said(fault)
        self._clock.recover()
        return None

    def _timed(self, call: Callable[[Tensors], Any], drawn: list[Tensors], meta: Callable[[Tensors], Any]) -> Figure:
        """meta: the same call for tensors of the meta device."""
        if self._built is None:
            return self._clock(call, drawn)
        self._built.ahead(lambda: meta({k: t.to(_META) for k, t in drawn[0].items()}))
        with self._built.starting():
            return self._clock(call, drawn)

    def _drawn(self, captured: Captured, values: dict[Any, int]) -> list[Tensors]:
        first = inputs(captured, values, self._clock.device, 0)
        size = sum(t.numel() * t.element_size() for t in first.values())
        return [first, *(inputs(captured, values, self._clock.device, n) for n in range(1, self._clock.sets(size)))]

    def _calls(self, piece: Piece, values: dict[Any, int], device: torch.device) -> dict[str, Callable[[Tensors], Any]]:
        """All contenders but Inductor."""
        captured, machine = piece.captured, self._target.machine
        names, kernel = load(captured.fusion).maths.tensors, kernels.load(captured.fusion, machine).run
        sizes = concrete(captured.sizes, values)

        def steps(graph: fx.Graph) -> Callable[[Tensors], Any]:
            module = runnable(graph, as_engine_fx(machine), device)
            return lambda tensors: module(*tensors.values(), *sizes)

        return {"ours": lambda tensors: kernel(*(tensors.get(n) for n in names), **captured.scalars),
                "plain": steps(captured.graph), **({} if piece.smaller is None else {"smaller": steps(piece.smaller)})}

    def _compiled(self, piece: Piece, values: dict[Any, int]) -> Callable[[Tensors], Any]:
        sizes = concrete(piece.captured.sizes, values)
        module = runnable(piece.captured.graph, lambda name: _INDUCTORS.get(name) or resolve(name, self._target.machine),
                          self._clock.device)
        compiled = torch.compile(module, fullgraph=True, dynamic=False, backend=self._backend)
        return lambda tensors: compiled(*tensors.values(), *sizes)


def said(fault: Exception) -> str:
    """A fault in a line, without the folders of this machine; of one that dynamo wraps what was inside."""
    inside = re.search(r": got (\w+\(.*\))$", str(fault), re.MULTILINE)
    first = inside[1] if inside else next((line for line in str(fault).splitlines() if line.strip()), "")
    return f"{type(fault).__name__}: {re.sub(r'(/[^/:]+)+/', '', first)[:200]}"


def judge_for(target: Target, bounds: Bounds, done: Callable[[int, int], None] = lambda *counts: None) -> Judge | str:
    """What times fusions for a GPU that is here, or why none are timed."""
    if not knobs.get("GLMC_TIMING"):
        return "GLMC_TIMING=0"
    device = gpu.here(target)
    if device is None or target.gpu is None:
        there = sorted({gpu.name_of(n) for n in range(torch.cuda.device_count())})
        return f"the GPU here is {', '.join(there)}" if there else "torch sees no GPU here"
    from glmc.passes.ahead import Built

    race = Race(target, GpuClock(device), built=Built(target.gpu))
    fault = race.starts()
    return f"no kernel starts here: {fault}" if fault else Judge((*buckets(bounds), *beside(bounds)), race, done)
