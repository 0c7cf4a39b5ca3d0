"""How the weights of all parts of a model are kept: one rule for compiling, and for what a loaded artefact must hold."""

from __future__ import annotations

from collections.abc import Mapping

from glmc.native.keep import Keep, forms, forms_for_gpu
from glmc.program import MAIN, Program


def keeps_of(programs: Mapping[str, Program], native: bool, quant: str | None, sources: Mapping[str, str]) -> dict[str, Keep]:
    """Weight -> the form in which it is kept, where that is not as the regions' text has it.

    Only the text is quantised, and only its matrices stay in a checkpoint's codes, which `sources` names with their form.
    native: whether the native library runs them; otherwise kernels of GPUs do. Raises UnsupportedTarget.
    """
    if not native:
        return forms_for_gpu(programs[MAIN], sources)
    found: dict[str, Keep] = {}
    for part, program in programs.items():
        found |= forms(program, quant, sources) if part == MAIN else forms(program, None)
    return found
