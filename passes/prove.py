"""Numeric proof: each distinct rewritten site, kernel against the very steps that it replaced, on inputs chosen to break it.

`capture` cuts those steps out of the graph before the rewrite destroys them; `prove` runs both and the reference in
float64. In each case by itself the kernel's worst error may be at most twice that of the steps plus one rounding step of
the result; errors are relative to the largest exact value of their row. A vendor's op, whose sums have an order of their
own, may declare in MOVED by how many rounding steps of the inputs the exact result may be moved instead. What is left in the
inputs counts as a result too: a cache must be written, and nothing else touched. Angles are taken in float32 as published,
their cosines and sines in float64. Of many rows the first and last are held against float64 and all against the steps. The
worst errors go into the artefact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from glmc import gpu, kernels
from glmc.errors import InternalError, NumericError
from glmc.graph import dtype_name
from glmc.passes import hostile
from glmc.passes.declare import load
from glmc.passes.hostile import CASES, EDGES, Case, Shapes, concrete, symbols_of
from glmc.passes.match import Site
from glmc.passes.replay import HOLDS, Replay, Results, Tensors, all_of
from glmc.target import Target

_LARGEST = 1 << 20
"""The most elements of a weight that is replayed at its own size where the reference can be traced at a smaller one."""
_MOST = 1 << 26
"""The most elements of any tensor that is replayed."""


@dataclass(frozen=True)
class Captured:
    """The steps that a distinct site replaces, as a graph of its own, and the places of all sites like it.

    graph: its placeholders are the tensors in the reference's order and then `sizes`, expressions of the tensors' symbols.
    outputs: the sizes of the results. twins: a tensor that is another one of the site's too -> that one. strides: of each
    tensor, as traced.
    """

    fusion: str
    shapes: Shapes
    scalars: dict[str, Any]
    graph: fx.Graph
    sizes: tuple[Any, ...]
    outputs: list[tuple]
    twins: dict[str, str]
    strides: dict[str, tuple]
    places: list[str]

    def key(self) -> tuple:
        """Equal for sites that are the same but for the tracer's names of their symbols."""
        return self.fusion, tuple(self.told().items()), tuple(self.scalars.items()), tuple(self.twins.items())

    def symbols(self) -> list[Any]:
        """The symbols of its sizes, in the order in which they appear."""
        return symbols_of(self.shapes)

    def told(self) -> dict[str, str]:
        """Tensor -> "bfloat16 [s0, s1, 5120]", symbols numbered by appearance."""
        names = {s: f"s{i}" for i, s in enumerate(self.symbols())}
        renamed = {s: type(s)(name, **s.assumptions0) for s, name in names.items()}
        return {k: f"{dtype_name(d)} [{', '.join(str(n if isinstance(n, int) else n.xreplace(renamed)) for n in sizes)}]"
                for k, (d, sizes) in self.shapes.items()}


@dataclass(frozen=True)
class Proof:
    """One distinct site: worst errors against float64, relative to the largest result of their row. `rows`: the most
    rows it was replayed on. `note`: what was not replayed as it stands in the model."""

    fusion: str
    shapes: dict[str, str]
    scalars: dict[str, Any]
    kernel_error: float
    reference_error: float
    places: int
    rows: int = 0
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        plain = {k: dtype_name(v) if isinstance(v, torch.dtype) else v for k, v in self.scalars.items()}
        return {**self.__dict__, "scalars": plain}


def kind(site: Site) -> tuple:
    """Equal for sites of one graph that are the same steps at the same sizes."""
    shapes, twins = _shapes(site)
    return site.fusion, tuple(shapes.items()), tuple(site.scalars.items()), tuple(twins.items())


def _shapes(site: Site) -> tuple[Shapes, dict[str, str]]:
    first: dict[fx.Node, str] = {}
    return ({k: (d, tuple(map(_size, s))) for k, (d, s) in site.describe().items()},
            {k: first[n] for k, n in site.tensors.items() if first.setdefault(n, k) != k})


def capture(sites: list[Site]) -> list[Captured]:
    """The steps of each distinct site of one graph, to be called before they are rewritten. Raises InternalError."""
    distinct: dict[tuple, Captured] = {}
    for site in sites:
        key = kind(site)
        if key not in distinct:
            shapes, twins = _shapes(site)
            graph, sizes, _ = cut(site)
            outputs = [tuple(map(_size, o.meta["val"].shape)) for o in site.outputs]
            strides = {k: tuple(map(_size, n.meta["val"].stride())) for k, n in site.tensors.items()}
            distinct[key] = Captured(site.fusion, shapes, dict(site.scalars), graph, sizes, outputs, twins, strides, [])
        distinct[key].places.append(site.place)
    return list(distinct.values())


def _size(size: Any) -> Any:
    """A size as a whole number or an expression."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    expression = size.node.expr
    return int(expression) if expression.is_Integer else expression


def cut(site: Site) -> tuple[fx.Graph, tuple[Any, ...], dict[fx.Node, fx.Node]]:
    """A site's steps as a graph of their own, the sizes that they take from outside, and what each node became there."""
    graph, steps = fx.Graph(), sorted(site.nodes)
    new: dict[fx.Node, fx.Node] = {}
    for name, node in site.tensors.items():
        placeholder = graph.placeholder(name)
        new.setdefault(node, placeholder)
    sizes: list[Any] = []
    for node in dict.fromkeys(n for step in steps for n in step.all_input_nodes):
        if node not in site.nodes and node not in new:
            value = node.meta.get("val")
            if not isinstance(value, (int, torch.SymInt)):
                raise InternalError("a step of a proved site reads a tensor that is not the site's", field=site.place,
                                    found=node.format_node())
            new[node] = graph.placeholder(f"size_{len(sizes)}")
            sizes.append(_size(value))
    for step in steps:
        new[step] = graph.node_copy(step, new.__getitem__)
        new[step].meta = {"val": step.meta["val"]}
    graph.output(tuple(new[o] for o in site.outputs))
    return graph, tuple(sizes), new


@contextmanager
def _one_thread() -> Iterator[None]:
    """Small steps on one thread: on a busy machine a second one is mostly waited for."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _there(kernel: Callable, device: torch.device) -> Callable:
    """A kernel that runs on `device`, called with tensors on the CPU: what it writes into them comes back too."""

    def run(*tensors: torch.Tensor | None, **scalars: Any) -> Results:
        moved = [t if t is None else t.to(device) for t in tensors]
        results = all_of(kernel(*moved, **scalars))
        for tensor, other in zip(tensors, moved, strict=True):
            if tensor is not None and other is not None:
                tensor.copy_(other)
        return tuple(r.cpu() for r in results)

    return run


def _replay(captured: Captured, target: Target, device: torch.device | None) -> tuple[Replay, str | None]:
    """What to run for a captured site, and a note where that is not the site as it stands."""
    maths = load(captured.fusion).maths
    file = kernels.load(captured.fusion, target.machine)
    kernel, moved = file.run, getattr(file, "MOVED", 0)
    if device is not None:
        kernel = _there(kernel, device)
    module = fx.GraphModule(nn.Module(), captured.graph)

    def steps(tensors: Tensors, values: dict) -> Results:
        return all_of(fx.Interpreter(module).run(*tensors.values(), *concrete(captured.sizes, values)))

    fixed = not captured.scalars and not any("..." in t.dims for t in maths.tensors.values())
    reduced = hostile.smaller(maths, captured.shapes, _LARGEST) if fixed else None
    if reduced is None:
        largest = max(captured.shapes, key=lambda n: hostile.least(captured.shapes[n][1]))
        if hostile.least(captured.shapes[largest][1]) > _MOST:
            raise NumericError("the site is too large to replay", field=f"{captured.places[0]}: {captured.fusion} {largest}",
                               expected=f"at most {_MOST} elements", found=captured.told()[largest])
        return Replay(maths, captured.shapes, captured.scalars, captured.outputs, captured.twins, kernel, steps,
                      moved), None
    shapes, note = reduced

    def again(tensors: Tensors, values: dict) -> Results:
        return all_of(maths.function(*(tensors.get(n) for n in maths.tensors)))

    return Replay(maths, shapes, {}, [], captured.twins, kernel, again, moved), note


@torch.no_grad()
def prove(captured: list[Captured], target: Target) -> list[Proof]:
    """Prove each distinct captured site: on the target's GPU where there is one here, else as `kernels.checking` runs it.

    Raises NumericError where a kernel is worse than what it replaces allows, or a site is too large to replay.
    """
    groups: dict[tuple, list[Captured]] = {}
    for one in captured:
        groups.setdefault(one.key(), []).append(one)
    device = gpu.here(target)
    with kernels.checking(target.machine) if device is None else nullcontext():
        return [_prove(group, target, device) for group in groups.values()]


def _prove(group: list[Captured], target: Target, device: torch.device | None) -> Proof:
    one = group[0]
    replay, note = _replay(one, target, device)
    worst, most = (0.0, 0.0), 0
    notes = [note] if note else []
    if replay.moved:
        notes.append(f"held against the exact result of inputs {replay.moved} rounding steps away")
    slow = target.machine == "triton" and device is None
    if device is not None:
        notes.append(f"on {gpu.model_of(device)}")
    elif slow:
        notes.append("in Triton's interpreter, and not on many rows")
    for case, found in _cases(replay, slow):
        kernel, plain, step, rows = found
        if not plain <= HOLDS and (math.isinf(plain) or not math.isinf(kernel)):
            if not case.special and case.spread <= 1:
                raise NumericError(f"the steps that {one.fusion} replaces are not its reference",
                                   field=f"{one.places[0]} ({case})", expected=f"at most {HOLDS}", found=f"{plain:.3g}")
            notes.append(f"not judged, since the replaced steps are off by {plain:.2g} themselves: {case}")
            continue
        bound = 2 * plain + step
        if not kernel <= bound:
            raise NumericError(f"the kernel of {one.fusion} is not the equal of the steps that it replaces",
                               field=f"{one.places[0]} ({case})", expected=f"at most {bound:.3g}",
                               found=f"{kernel:.3g}")
        worst, most = (max(worst[0], kernel), max(worst[1], plain)), max(most, rows)
    return Proof(one.fusion, one.told(), one.scalars, *worst, sum(len(c.places) for c in group), most,
                 "; ".join(notes) or None)


def _cases(replay: Replay, slow: bool) -> Iterator[tuple[Case, tuple[float, float, float, int]]]:
    """Every case that applies to the site, and what it found; of the values near the edge the first at which steps hold.

    slow: leave out the one with many rows.
    """
    for case in CASES:
        many = case.sizes == "many rows"
        if many and slow:
            continue
        with nullcontext() if many else _one_thread():
            found = replay.case(case)
        if found is not None:
            yield case, found
    with _one_thread():
        edge = next(((case, found) for case in EDGES if (found := replay.case(case)) is not None), None)
    if edge is not None:
        yield edge
