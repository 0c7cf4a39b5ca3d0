"""Exact clean-ups, one file each: bits unchanged. They run in the order of `ORDER`, which is the road, not a rank."""

from __future__ import annotations

from torch import fx

from glmc.passes.tidy import (
    assign,
    casts,
    dead,
    devices,
    dims,
    histogram,
    lanes,
    metadata,
    rows,
    slices,
    spelling,
    tables,
    transposes,
    views,
)

ORDER = (metadata, casts, assign, devices, histogram, views, dims, slices, rows, transposes, tables, lanes, spelling, dead)


def tidy(graph: fx.Graph) -> dict[str, int]:
    """Run every clean-up once on `graph`, in place; returns how many nodes each changed."""
    counts = {module.__name__.rsplit(".", 1)[1]: module.run(graph) for module in ORDER}
    graph.lint()
    return counts
