"""Sites of fusions' references, captured for the numeric proof, with rows, tokens and slots symbolic."""

from __future__ import annotations

import torch
import traced

from glmc.passes import declare
from glmc.passes.prove import capture
from glmc.target import named

CPU = named("cpu")
MOVING = ("...", "B", "S", "L", "T")


def graph_of(maths, dtype, wide=False, moving=True):
    """The maths at its first sample, traced with rows, tokens and slots symbolic, or static."""
    tensors = maths.empty(0, dtype, wide)
    free = []
    for name, tensor in zip(maths.present(0), tensors, strict=True):
        dims = maths.tensors[name].dims
        lead = tensor.dim() - sum(d != "..." for d in dims)
        letters = [d for word in dims for d in ([word] * lead if word == "..." else [word])]
        fixed = tensor.dim() - len([d for d in letters if d in MOVING])
        offset = tensor.dim() - len(letters)
        free.append({i + offset: torch.export.Dim.DYNAMIC for i, d in enumerate(letters)
                     if d in MOVING and tensor.shape[i + offset] > 1} if fixed else
                    dict.fromkeys(range(tensor.dim()), torch.export.Dim.DYNAMIC))
    if maths.samples[0].get("axis_map"):
        for name in ("positions", "cos", "sin"):
            if name in maths.present(0):
                free[maths.present(0).index(name)].pop(0)  # the axes are three
    if maths.samples[0].get("axial"):
        free[0].pop(tensors[0].dim() - 1)  # and a patch has two coordinates
    return traced.graph_of(maths.bound(maths.present(0)), tensors, maths.settings(0, dtype), free if moving else None)


def captured(name, pair=0, dtype=torch.float32, wide=False, moving=True):
    fusion = declare.load(name)
    graph = graph_of(traced.unseen(fusion, pair, 2 if name == "attention" else 1), dtype, wide, moving)
    return capture(traced.find(fusion, graph).sites)
