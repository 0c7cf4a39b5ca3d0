"""`glmc plan --ranks N`: what each stage of a model would take on so many ranks, and on one, by `glmc.topology`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from glmc.errors import UsageError
from glmc.program import MAIN, Program
from glmc.survey import Survey
from glmc.target import link
from glmc.tensor_parallel import placed
from glmc.topology import Rank, predict

PROMPT, CONTEXT, SIDE = 1024, 1024, 1024
"""Tokens of the prompt, slots that a decoded token sees, and pixels of a side of the picture, for which times are told."""
PATCH, GLYPHS = 16, 16
Stage = tuple[str, Program, Mapping[str, int]]


def forecast(surveyed: Survey, ranks: int, name: str) -> dict[str, Any]:
    """Per stage: mode, seconds and bound on `ranks` ranks and on one. name: of the link between them, see `topology.LINKS`.

    Nothing here was measured. Raises UsageError where so many ranks cannot run the model, UnknownName.
    """
    between, target = link(name), surveyed.target
    rank = Rank(target.flops, target.bandwidth, target.launch_us * 1e-6)
    alone = {stage: (program, letters) for stage, program, letters in _stages(surveyed, 1)}
    rows = []
    for stage, program, letters in _stages(surveyed, ranks):
        one, several = predict(*alone[stage], 1, rank, between), predict(program, letters, ranks, rank, between)
        rows.append({"stage": stage, "mode": program.mode, "seconds": several.seconds, "bound": several.bound,
                     "one_rank_seconds": one.seconds, "longest": several.rows[0].name})
    return {"ranks": ranks, "link": name, "flops": rank.flops, "stages": rows}


def _stages(surveyed: Survey, ranks: int) -> Iterator[Stage]:
    dit = surveyed.programs.get("dit")
    if MAIN in surveyed.programs:
        text = surveyed.program if ranks == 1 or dit is not None else _share(surveyed, ranks)
        yield f"prompt of {PROMPT} tokens", text, {"B": 1, "S": PROMPT, "L": PROMPT, "M": 2}
        yield f"token after {CONTEXT}", text, {"B": 1, "S": 1, "L": CONTEXT, "M": 2}
    if dit is not None:
        rows = SIDE // PATCH
        if rows % ranks:
            raise UsageError("the rows of patches do not divide among the ranks", field="ranks", found=ranks,
                             expected=f"a divisor of {rows}")
        # Keys of all ranks are seen: K counts the text, the rank's own patches and those of the others.
        yield (f"call of the diffusion transformer at {SIDE} x {SIDE}", dit,
               {"B": 1, "T": GLYPHS, "H": rows // ranks, "W": rows, "K": GLYPHS + rows * rows})


def _share(surveyed: Survey, ranks: int) -> Program:
    found, notes = placed(surveyed)
    if found is None or ranks not in found.degrees():
        able = () if found is None else found.degrees()
        raise UsageError("the model cannot be cut for so many ranks", field="ranks", found=ranks,
                         expected=", ".join(map(str, [1, *able])), hint=None if able else notes[-1])
    return found.program.at(ranks)
