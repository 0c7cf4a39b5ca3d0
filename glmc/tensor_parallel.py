"""The text model for several ranks, made when a model is compiled: placed, lowered for the engine, and proved."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from glmc import published
from glmc.errors import UnsupportedTarget
from glmc.native.keep import Keep, coded, forms
from glmc.native.share import degrees
from glmc.passes.place import Plan, place
from glmc.passes.prove_placement import PlacementProof, prove_placement
from glmc.placement import Placement
from glmc.survey import Survey


def placement_of(surveyed: Survey, keeps: Mapping[str, Keep], quant: str | None,
                 ) -> tuple[Placement | None, list[PlacementProof], list[str]]:
    """The placement and its proofs, or None, and notes on what is not cut and why. Raises NumericError."""
    if (engine := surveyed.target.engine) in ("aoti", "iree", "mlir"):
        return None, [], [f"several ranks cannot run this artefact: the engine {engine} compiles regions for whole weights"]
    if "components" in surveyed.config:
        return None, [], ["the ranks of a pipeline share its pictures: the text model runs on one and is not cut"]
    found, notes = placed(surveyed)
    if found is None:
        return None, [], notes
    able = degrees(found, keeps)
    if not able:
        return None, [], [*notes, "several ranks cannot run this artefact: a cut goes through groups of quantised inputs"]
    if surveyed.target.engine == "native":
        try:
            forms(found.program.at(able[0]), quant, coded(keeps))
        except UnsupportedTarget as reason:
            return None, [], [*notes, f"several ranks cannot run this artefact: {reason.found}"]
    found = dataclasses.replace(found, ranks=tuple(able))
    return found, prove_placement(surveyed.program, found, able[0]), notes


def placed(surveyed: Survey) -> tuple[Placement | None, list[str]]:
    """The text model cut by its published plan, None where it cannot be, and notes on what is not cut and why."""
    rows = {name: len(parameter) for name, parameter in surveyed.module.named_parameters(remove_duplicate=False)}
    joined = {name: tuple((part, rows[part]) for part in parts) for name, parts in surveyed.joined.items()}
    return place(surveyed.program, Plan(published.tensor_parallel_plan(surveyed.module), joined))
