"""Join projections of the same rows into one product: q, k and v; gate and up; the latents of MLA.

Linears that read the same node with parameters of the same module become one linear whose weight is the concatenation of
theirs. In the graph that weight is a `cat` of parameters, so the graph stays what it was; `fold` makes each such `cat` a
parameter of its own, to be packed by a recipe, and `undo` takes back what nothing gained from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from glmc.graph import published_name, region_of
from glmc.passes.tidy import dead
from glmc.trace import Trace

_A = torch.ops.aten
_END = 9223372036854775807
# Names of the joined projection where the field has one; else the parts' names, joined.
_NAMES = {("q_proj", "k_proj", "v_proj"): "qkv_proj", ("gate_proj", "up_proj"): "gate_up_proj",
          ("q_a_proj", "kv_a_proj_with_mqa"): "fused_qkv_a_proj_with_mqa", ("to_q", "to_k", "to_v"): "to_qkv"}


@dataclass(frozen=True)
class Merged:
    """One joined product: the linear, its concatenations, and what each slice of it was before."""

    linear: fx.Node
    concatenations: tuple[fx.Node, ...]
    parts: tuple[tuple[fx.Node, tuple], ...]
    """(slice, arguments of the linear that it replaced) for each part."""


def merge(trace: Trace) -> list[Merged]:
    """Join what can be joined, in place. Parts have parameters of one dtype, all with a bias or none with one."""
    graph, order = trace.graph, {n: i for i, n in enumerate(trace.graph.nodes)}
    groups: dict[tuple, list[fx.Node]] = {}
    regions = region_of(graph)
    for node in graph.find_nodes(op="call_function", target=_A.linear.default):
        source, weight, bias = (*node.args, None)[:3]
        name = trace.parameters.get(weight.name)
        if name is None or name.count(".") < 2 or (bias is not None and bias.name not in trace.parameters):
            continue
        key = (source, name.rsplit(".", 2)[0], weight.meta["val"].dtype, bias is None, regions[node])
        groups.setdefault(key, []).append(node)
    made = [_join(graph, linears) for (source, *_), linears in groups.items()
            if len(linears) > 1 and order[source] < order[linears[0]]]
    dead.run(graph)
    graph.lint()
    return made


def _join(graph: fx.Graph, linears: list[fx.Node]) -> Merged:
    first = linears[0]
    biased = len(first.args) > 2 and first.args[2] is not None
    columns: list[list[Any]] = [[n.args[i] for n in linears] for i in ((1, 2) if biased else (1,))]
    with graph.inserting_before(first):
        cats = [_call(graph, _A.cat.default, (parts, -p.meta["val"].dim()), first, torch.cat([n.meta["val"] for n in parts]))
                for parts in columns for p in parts[:1]]
        widths = [n.meta["val"].shape[-1] for n in linears]
        value = first.meta["val"].new_empty((*first.meta["val"].shape[:-1], sum(widths)))
        joined = _call(graph, _A.linear.default, (first.args[0], *cats), first, value)
        joined.meta["pieces"] = [(n.meta.get("nn_module_stack"), w) for n, w in zip(linears, widths, strict=True)]
        parts, start = [], 0
        for node, width in zip(linears, widths, strict=True):
            end = _END if node is linears[-1] else start + width
            piece = _call(graph, _A.slice.Tensor, (joined, -1, start, end, 1), node, node.meta["val"])
            node.replace_all_uses_with(piece)
            parts.append((piece, node.args))
            start += width
    return Merged(joined, tuple(cats), tuple(parts))


def _call(graph: fx.Graph, target, args: tuple, like: fx.Node, value: torch.Tensor) -> fx.Node:
    node = graph.call_function(target, args)
    node.meta = {**like.meta, "val": value}
    return node


def undo(graph: fx.Graph, merged: list[Merged]) -> int:
    """Take back joined products that are read only by their slices; returns how many."""
    undone = 0
    for one in merged:
        slices = {piece for piece, _ in one.parts}
        if set(one.linear.users) <= slices:
            for piece, args in one.parts:
                if piece in one.linear.users:
                    piece.target, piece.args = _A.linear.default, args
            undone += 1
    dead.run(graph)
    return undone


def fold(trace: Trace, merged: list[Merged]) -> dict[str, tuple[str, ...]]:
    """Make each concatenation a parameter; returns its published name -> the names of its parts, in order."""
    folded: dict[str, tuple[str, ...]] = {}
    cat: Any
    last = next(n for n in reversed(trace.graph.nodes) if n.op == "placeholder")
    for one in merged:
        for cat in one.concatenations:
            parts = tuple(trace.parameters[n.name] for n in cat.args[0])
            name = joined_name(parts)
            with trace.graph.inserting_after(last):
                made = trace.graph.placeholder("p_" + name.replace(".", "_"))
            made.meta = {"val": cat.meta["val"]}
            trace.parameters[made.name] = name
            folded[published_name(name)] = tuple(map(published_name, parts))
            cat.replace_all_uses_with(made)
    dead.run(trace.graph)
    return folded


def joined_name(parts: tuple[str, ...]) -> str:
    """The qualified name of the concatenation of parameters: MODULE.qkv_proj.weight for q_proj, k_proj, v_proj."""
    module, _, kind = parts[0].rsplit(".", 2)
    names = tuple(p.rsplit(".", 2)[1] for p in parts)
    return f"{module}.{_NAMES.get(names, '_'.join(names))}.{kind}"
