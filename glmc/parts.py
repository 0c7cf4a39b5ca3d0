"""A model's parts, each ready to be traced: a module with explicit tensor inputs, sample inputs and what is dynamic."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from glmc import published
from glmc.cache import Shape, layout
from glmc.trace import Trace

_ROWS, _TOKENS, _SLOTS, _FEATURES = 2, 5, 16, 7
_MOST = 1 << 20


@dataclass(frozen=True)
class Part:
    """One part of a model: `trace(part.module, part.args, part.dynamic)` gives its graph.

    letters: letter -> (number of the flat input, dimension) whose one symbol it names; `symbols` turns them into the
    tracer's names.
    names: of the flat inputs in order; a layer's state is called "keys.7". mode: how it runs over ranks, one of
    glmc.program.MODES.
    """

    name: str
    module: nn.Module
    args: tuple
    dynamic: Any
    letters: dict[str, tuple[int, int]]
    names: tuple[str, ...] = ()
    mode: str = "replicated"

    def symbols(self, traced: Trace) -> dict[str, str]:
        """The tracer's symbol -> our letter, read from the inputs of this part's own trace."""
        values = {n.name: n.meta["val"] for n in traced.graph.nodes if n.op == "placeholder"}
        return {_symbol(values[traced.inputs[i]].shape[d]): letter for letter, (i, d) in self.letters.items()}


def _symbol(size: Any) -> str:
    """The one symbol of a size: s7 of `s7`, `4*s7` or `s7 + 1`."""
    (found,) = set(re.findall(r"\bs\d+\b", str(size)))
    return found


def parts(config: dict[str, Any], dtype: torch.dtype) -> list[Part]:
    """The text part of the published model for `config`, on the meta device. Raises ConfigError.

    config: that of config.json; a quantised one is taken as if it were not. For what crosses the boundary see
    glmc/published.py.
    """
    return [text_part(published.build(config, dtype), dtype)]


def text_part(model: Any, dtype: torch.dtype) -> Part:
    """The text part of a published model on the meta device: rows B, new tokens S and slots L are all dynamic,
    and so are the rows M of a vision tower.

    With a sparse indexer L is at least the number of slots that it chooses, since a graph chooses a fixed number.
    """
    text = model.config.get_text_config()
    layers = layout(text, dtype)
    rotary = getattr(getattr(model.model, "language_model", model.model), "rotary_emb", None)
    three = hasattr(rotary, "mrope_section")
    least = max(2, getattr(text, "index_topk", 2))
    media = three and published.takes_features(model)
    sizes = {"B": _ROWS, "S": _TOKENS, "L": max(_SLOTS, least), "M": _FEATURES}
    dims = {letter: torch.export.Dim(letter, min=least if letter == "L" else 2, max=_MOST) for letter in sizes}

    def made(shape: Shape, kind: torch.dtype) -> torch.Tensor:
        return torch.zeros([sizes[n] if isinstance(n, str) else n for n in shape], dtype=kind, device="meta")

    def moving(shape: Shape) -> dict[int, Any]:
        return {i: dims[n] for i, n in enumerate(shape) if isinstance(n, str)}

    inputs: dict[str, tuple[Shape, torch.dtype]] = {
        "input_ids": (("B", "S"), torch.int64), "positions": ((3, "B", "S") if three else ("B", "S"), torch.int64),
        "slots": (("L",), torch.int64), **({"where": (("B", "S"), torch.int64)} if three else {}),
        **({"features": (("M", text.hidden_size), dtype), "media": (("B", "S"), torch.int64)} if media else {})}
    caches = [tuple(made(*spec) for spec in layer.values()) for layer in layers]
    args = (*(made(*spec) for spec in inputs.values()), caches)
    dynamic = (*(moving(shape) for shape, _ in inputs.values()),
               [tuple(moving(shape) for shape, _ in layer.values()) for layer in layers])
    names = (*inputs, *(f"{name}.{i}" for i, layer in enumerate(layers) for name in layer))
    explicit = published.ExplicitMedia if media else published.ExplicitRows if three else published.Explicit
    module = explicit(model, [tuple(layer) for layer in layers])
    letters = {"B": (0, 0), "S": (0, 1), "L": (2, 0), **({"M": (4, 0)} if media else {})}
    return Part("text", module, args, dynamic, letters, names)
