"""How the weights of all parts of a model are kept: one rule for compiling, and for what a loaded artefact must hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from glmc.native.calls import Refused
from glmc.native.keep import Keep, forms, forms_for_gpu
from glmc.native.lower import lowered
from glmc.program import FX, MAIN, Program


def keeps_of(programs: Mapping[str, Program], engine: str, quant: str | None, sources: Mapping[str, str]) -> dict[str, Keep]:
    """Weight -> the form in which it is kept, where that is not as the regions' text has it.

    A part that another engine runs has its weights as they are. Only the text is quantised, and only its matrices stay in a
    checkpoint's codes, which `sources` names with their form. engine: the artefact's; of "iree" float32 matrices that only
    products read are in panels, of others than that and "native" kernels of GPUs read codes. Raises UnsupportedTarget.
    """
    if engine == "iree":
        wide = {name: "F32" for name, spec in programs[MAIN].weights().items()
                if spec.dtype == "float32" and len(spec.shape) == 2}
        return forms_for_gpu(programs[MAIN], wide, gpu=False)
    if engine != "native":
        return forms_for_gpu(programs[MAIN], sources)
    found: dict[str, Keep] = {}
    for part, program in programs.items():
        if program.engine is None:
            found |= forms(program, quant, sources) if part == MAIN else forms(program, None)
    return found


def with_engines(programs: Mapping[str, Program]) -> tuple[dict[str, Program], list[str]]:
    """The parts of a model for the native library, and what is said of them: a part beside the text that has a region which
    no native kernels do runs on engine `fx`, as a whole."""
    made, notes = dict(programs), []
    for part, program in programs.items():
        for region in program.regions.values() if part != MAIN else ():
            try:
                lowered(region)
            except Refused as reason:
                made[part] = dataclasses.replace(program, engine=FX)
                notes.append(f"part {part} runs on engine {FX}: the native engine cannot run {region.name}: {reason}")
                break
    return made, notes


def panels_of(program: Program, keeps: Mapping[str, Keep]) -> dict[str, dict[str, tuple[int, ...]]]:
    """Region -> its weights in panels, by its own names, with the panels' shape. All layers of a region keep them alike."""
    return {step.region: {local: keeps[weight].stored()[1] for name, (local, role, _)
                          in zip(step.inputs, program.regions[step.region].inputs, strict=True)
                          if role == "weight" and (weight := name.removeprefix("weight:")) in keeps}
            for step in program.steps if not step.moves}
