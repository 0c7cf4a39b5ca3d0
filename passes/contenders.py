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
from glmc.kernels import timing
from glmc.kernels.timing import Clock, Figure
from glmc.passes.declare import Maths, load
from glmc.passes.emit import target_name
from glmc.passes.faster import Bucket, Judge, Piece, Timing, buckets
from glmc.passes.hostile import concrete
from glmc.passes.lower import Bounds
from glmc.passes.prove import Captured
from glmc.passes.replay import Tensors
from glmc.region import FACTORIES, resolve
from glmc.target import Target

INDUCTOR_SECONDS = 60.0
"""What compiling and timing Inductor's code may take in all; pieces after that have no figure of it."""
_INDUCTORS = {"glmc.grouped_mm": lambda x, weight, ends: functional.grouped_mm(x, weight, offs=ends)}
"""Steps that stand for one of torch's own -> that one, which Inductor knows."""


def runnable(graph: fx.Graph, machine: str, device: torch.device, others: dict[str, Callable] | None = None,
             ) -> fx.GraphModule:
    """Captured steps as engine `fx` runs them on a device. others: the name of a step -> what to call instead."""
    made = fx.Graph()
    made.output(made.graph_copy(graph, {}))
    for node in made.nodes:
        if node.op == "call_function":
            name = target_name(node)
            node.target = (others or {}).get(name) or resolve(name, machine)
            if name in FACTORIES:
                node.kwargs = {**node.kwargs, "device": device}
        node.meta = {}
    return fx.GraphModule(nn.Module(), made)


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
        order = sorted(range(len(shape)), key=lambda dim, strides=strides: -strides[dim])
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
    """Times pieces for a target with a clock. backend: what compiles the steps, of torch.compile's."""

    def __init__(self, target: Target, clock: Clock, backend: str = "inductor") -> None:
        self._target, self._clock, self._backend = target, clock, backend
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
        for name, call in self._calls(piece, values).items() if drawn else ():
            began = time.perf_counter()
            if name == "inductor" and self._spent > INDUCTOR_SECONDS:
                reasons[name] = f"compiling for it has taken {INDUCTOR_SECONDS:.0f} s already"
                continue
            try:
                figures[name] = self._clock(call, drawn)
            except Exception as fault:
                reasons[name] = said(fault)
            if name == "inductor":
                self._spent += time.perf_counter() - began
        del drawn
        self._clock.recover()
        return Timing(bucket, figures, reasons)

    def _drawn(self, captured: Captured, values: dict[Any, int]) -> list[Tensors]:
        first = inputs(captured, values, self._clock.device, 0)
        size = sum(t.numel() * t.element_size() for t in first.values())
        return [first, *(inputs(captured, values, self._clock.device, n) for n in range(1, self._clock.sets(size)))]

    def _calls(self, piece: Piece, values: dict[Any, int]) -> dict[str, Callable[[Tensors], Any]]:
        captured, machine, device = piece.captured, self._target.machine, self._clock.device
        names, kernel = load(captured.fusion).maths.tensors, kernels.load(captured.fusion, self._target.machine).run
        sizes = concrete(captured.sizes, values)

        def steps(module: Callable) -> Callable[[Tensors], Any]:
            return lambda tensors: module(*tensors.values(), *sizes)

        compiled = torch.compile(runnable(captured.graph, machine, device, _INDUCTORS), fullgraph=True, dynamic=False,
                                 backend=self._backend)
        return {"ours": lambda tensors: kernel(*(tensors.get(n) for n in names), **captured.scalars),
                "plain": steps(runnable(captured.graph, machine, device)),
                **({} if piece.smaller is None else {"smaller": steps(runnable(piece.smaller, machine, device))}),
                "inductor": steps(compiled)}


def said(fault: Exception) -> str:
    """A fault in a line, without the folders of this machine; of one that dynamo wraps what was inside."""
    inside = re.search(r": got (\w+\(.*\))$", str(fault), re.MULTILINE)
    first = inside[1] if inside else next((line for line in str(fault).splitlines() if line.strip()), "")
    return f"{type(fault).__name__}: {re.sub(r'(/[^/:]+)+/', '', first)[:200]}"


def judge_for(target: Target, bounds: Bounds, done: Callable[[int, int], None] = lambda *counts: None) -> Judge | str:
    """What times fusions for a GPU that is here, or why none are timed."""
    if not knobs.get("GLMC_TIMING"):
        return "GLMC_TIMING=0"
    if not torch.cuda.is_available():
        return "torch sees no GPU here"
    here = gpu.name_of(torch.cuda.current_device())
    if here != target.name:
        return f"the GPU here is {here}"
    clock = timing.GpuClock(torch.cuda.current_device())
    try:
        gate = torch.ones((1, 16), device=clock.device)
        kernels.load("silu_mul", target.machine).run(gate, gate)
        clock.recover()
    except Exception as fault:
        return f"no kernel starts here: {said(fault)}"
    return Judge(tuple(buckets(bounds)), Race(target, clock), done)
