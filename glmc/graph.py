"""Reading a graph: which region a node belongs to, sizes, symbols, and dtype names."""

from __future__ import annotations

import operator
import re

import torch
from torch import fx

_LAYER = re.compile(r"(?:^|\.)(?:layers|blocks?|transformer_blocks)\.(\d+)(?:\.|$)")


EXCHANGE = "glmc.exchange.default"
"""The step at which a layer is cut in two: between the pieces keys and values of elsewhere come in. See glmc/dit_part.py."""


def layer_of(node: fx.Node) -> int | None:
    """The layer or block whose module the node was traced in."""
    for path, _ in (node.meta.get("nn_module_stack") or {}).values():
        found = _LAYER.search(path)
        if found:
            return int(found[1])
    return None


def region_of(graph: fx.Graph) -> dict[fx.Node, str]:
    """ "layer.N" for the steps of layer or block N; outside, "head" for what depends on one, "embed" for the rest.

    Where a layer exchanges keys and values, that step and its results are "layer.N.1", all that depends on them "layer.N.2".
    """
    regions: dict[fx.Node, str] = {}
    cuts: dict[fx.Node, tuple[int, int]] = {}
    late: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        layer = layer_of(node)
        if layer is not None:
            cut = _cut(node, [cuts[n][1] for n in node.all_input_nodes if cuts.get(n, (None,))[0] == layer])
            cuts[node] = (layer, cut)
            regions[node] = f"layer.{layer}.{cut}" if cut else f"layer.{layer}"
            late.add(node)
        elif any(n in late for n in node.all_input_nodes):
            regions[node] = "head"
            late.add(node)
        else:
            regions[node] = "embed"
    return regions


def _cut(node: fx.Node, before: list[int]) -> int:
    """How often a layer was cut before this step: even numbers are steps, odd ones exchanges with their results."""
    last = max(before, default=0)
    if str(node.target) == EXCHANGE:
        return last + 1
    return last + last % 2 if node.target is not operator.getitem else last


def published_name(path: str) -> str:
    """The path of a parameter in the published model, which the traced wrapper holds as `model`."""
    return path.removeprefix("model.")


def dtype_name(dtype: torch.dtype) -> str:
    """"bfloat16" for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def size_at_one(value: torch.Tensor) -> int:
    """Bytes of a tensor when every symbolic size is one: one row, one new token, one slot."""
    count = value.element_size()
    for size in value.shape:
        count *= 1 if isinstance(size, torch.SymInt) else size
    return count


def shape_text(value: torch.Tensor, symbols: dict[str, str]) -> list[int | str]:
    """The sizes of `value`, symbolic ones as expressions in our letters."""
    out: list[int | str] = []
    for size in value.shape:
        if isinstance(size, torch.SymInt):
            out.append(re.sub(r"\bs\d+\b", lambda m: symbols.get(m[0], m[0]), str(size)))
        else:
            out.append(int(size))
    return out
