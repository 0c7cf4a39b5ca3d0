"""`python -m glmc.runtime OUT --prompt TEXT`: one rank of a run, started by `glmc run --ranks N` or by torchrun.

Whatever happens, it says what and leaves at once with a code of its own: gloo would abort a process that ends by itself.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from glmc import knobs
from glmc.errors import GlmcError, InternalError
from glmc.runtime.lifeline import Piped, Report, Spoken
from glmc.runtime.rank_fault import RankFault


def arguments(words: list[str]) -> argparse.Namespace:
    """What a worker is told: the request as `glmc run` takes it, and how to find the others."""
    parser = argparse.ArgumentParser(prog="python -m glmc.runtime", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompt")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--repetition-penalty", type=float, default=1.0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--raw", action="store_true")
    parser.add_argument("--image", action="append", default=[], dest="images")
    parser.add_argument("--size", help="of a picture, width x height")
    parser.add_argument("-o", dest="output", help="where a picture is written")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--cfg-parallel", action="store_true", dest="cfg")
    parser.add_argument("--request", help="all of the request as JSON, instead of the options above")
    parser.add_argument("--device")
    parser.add_argument("--deadline", type=float, default=None, help="the most seconds to wait for another rank")
    parser.add_argument("--file", type=Path, help="where the ranks meet; torchrun's address if not given")
    parser.add_argument("--pipes", type=int, nargs=2, help="descriptors to report to the parent, and to see its end")
    return parser.parse_args(words)


def work(given: argparse.Namespace, report: Report) -> None:
    """Meet the others, load, answer and part. What goes wrong on any rank is raised here."""
    from glmc.runtime.rendezvous import place  # torch comes with it, and takes a second

    rank, size = place()
    deadline = given.deadline or float(knobs.get("GLMC_DEADLINE"))
    state: dict[str, Any] = {"stage": "start"}
    try:
        _work(given, report, deadline, rank, size, state)
    except Exception as error:
        world = state.get("world")
        raise (world.fail(error) if world else RankFault.of(error, rank, "start").error()) from error


def _work(given: argparse.Namespace, report: Report, deadline: float, rank: int, size: int, state: dict[str, Any]) -> None:
    import torch

    import glmc
    from glmc.artifact import Artifact
    from glmc.runtime.device import of_rank
    from glmc.runtime.faults import Fault, FaultyWorld
    from glmc.runtime.opened import read_programs
    from glmc.runtime.world import World, is_main

    artifact = Artifact.open(given.out)
    pictures = artifact.manifest["dims"].get("pictures") is not None
    ranked: Any = importlib.import_module("glmc.runtime.image.ranked" if pictures else "glmc.runtime.ranked")
    request = ranked.Request(**json.loads(given.request)) if given.request else ranked.Request.of(given)
    fault = Fault.asked()
    if fault and fault.rank == rank:
        kind: type[World] = type("PlantedWorld", (FaultyWorld,), {"fault": fault})
    else:
        kind = World
    if fault:
        fault.at(rank, "meet", deadline)
    threads = max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", size)))
    torch.set_num_threads(threads)
    report.tell("stage", stage="start")
    device = of_rank(artifact, given.device, int(os.environ.get("LOCAL_RANK", 0)))
    world = state["world"] = kind.open(deadline, given.file, device)
    world.watch = lambda stage: report.tell("stage", stage=stage)
    world.agree({"artifact": artifact.manifest["digest"], "glmc": glmc.__version__, "torch": torch.__version__,
                 "ranks": str(size), "deadline": str(deadline), "request": repr(request)})
    model = ranked.opened(artifact, world, request, device, threads)
    world.agree({"parts": ", ".join(sorted(read_programs(artifact)))}, "load")
    result = ranked.answer(model, request, lambda text: report.tell("piece", text=text) if text and is_main(world) else None)
    if is_main(world):
        report.tell("answer", answer=ranked.told(result))
    world.close()
    report.tell("done", main=is_main(world))


def main(words: list[str]) -> int:
    """Run one rank to its end; the code to leave with."""
    given = arguments(words)
    report: Report = Piped(*given.pipes) if given.pipes else Spoken()
    try:
        work(given, report)
        return 0
    except GlmcError as error:
        told = error
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        told = InternalError(f"{type(error).__name__}: {error}")
    report.fault(RankFault.of(told, int(os.environ.get("RANK", 0)), "start"))
    return told.exit


if __name__ == "__main__":
    code = 70
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
