"""`glmc bench`: latencies, rates, memory and cold start of an artefact, beside others and beside what the machine can do."""

from __future__ import annotations

import json as json_text
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from glmc.artifact import Artifact
from glmc.cli import arguments, show
from glmc.errors import MissingPackage, OutputExists, StorageError, UsageError

NAMES = ("report.json", "report.md", "report.html", "trace.json")

Against = Annotated[str | None, typer.Option(
    "--against", metavar="A,B", show_default=False,
    help="Who takes turns with it: eager, inductor, aoti, another artefact, llama-bench:MODEL.gguf, http://HOST/v1#MODEL.")]
Checkpoint = Annotated[Path | None, typer.Option("--checkpoint", metavar="FOLDER", show_default=False,
                                                 help="What the artefact was compiled from, for eager, inductor and aoti.")]
Into = Annotated[Path | None, typer.Option("-o", metavar="DIR", show_default=False,
                                           help="Where report.json, report.md and report.html go; stdout if not given.")]
InputLen = Annotated[str, typer.Option("--input-len", metavar="N,...", help="Tokens of each prompt.")]
OutputLen = Annotated[str, typer.Option("--output-len", metavar="N,...", help="Tokens of each answer.")]
BatchSize = Annotated[str, typer.Option("--batch-size", metavar="N,...", help="Prompts at once.")]
NumIters = Annotated[int, typer.Option("--num-iters", metavar="N", help="Rounds, in each of which everyone has a turn.")]
Warmup = Annotated[int, typer.Option("--num-iters-warmup", metavar="N", help="Rounds before those, which are not kept.")]
Threads = Annotated[int | None, typer.Option("--threads", metavar="N", show_default=False, help="All cores if not given.")]
ColdStarts = Annotated[int, typer.Option("--cold-starts", metavar="N", help="Fresh processes, each until its first token.")]
Profile = Annotated[bool, typer.Option("--profile", help="Show every call of a step; with -o also write trace.json.")]


def bench(out: arguments.Out, against: Against = None, checkpoint: Checkpoint = None, output: Into = None,
          input_len: InputLen = "128", output_len: OutputLen = "32", batch_size: BatchSize = "1", num_iters: NumIters = 30,
          num_iters_warmup: Warmup = 2, threads: Threads = None, cold_starts: ColdStarts = 3, profile: Profile = False,
          device: arguments.DeviceName = None, json: arguments.Json = False) -> None:
    """Measure an artefact: interleaved rounds with whoever it is set against, as one report tied to its digest."""
    from glmc.bench.machine import cores
    from glmc.bench.markdown import markdown
    from glmc.bench.measure import measure
    from glmc.bench.peer import contenders, home
    from glmc.bench.report import report
    from glmc.bench.work import works

    opened = Artifact.open(arguments.artifact(out))
    for name, value, least in (("num-iters", num_iters, 1), ("num-iters-warmup", num_iters_warmup, 0),
                               ("cold-starts", cold_starts, 0)):
        if value < least:
            raise UsageError("a number is out of range", field=f"--{name}", expected=f"at least {least}", found=value)
    if threads is not None and not 1 <= threads <= len(cores()):
        raise UsageError("the number of threads is out of range", field="--threads",
                         expected=f"1 to {len(cores())}, the cores here", found=threads)
    threads = threads or len(cores())
    if output is not None and (there := [name for name in NAMES if (output / name).exists()]):
        raise OutputExists("a report is there already", file=output / there[0])
    if opened.manifest["dims"].get("pictures") is not None:
        raise UsageError("this artefact makes pictures; what is measured is text", file=out, hint="see bench/denoising.py")
    asked = works(_numbers("input-len", input_len), _numbers("output-len", output_len), _numbers("batch-size", batch_size),
                  opened.manifest["bounds"])
    everyone = contenders(out, [word for word in (against or "").split(",") if word], checkpoint, threads, device)
    place = home(opened.manifest["target"], device)
    measured = measure(everyone, asked, num_iters, num_iters_warmup, threads, place, cold_starts, tell=show.talk)
    made = report(opened, asked, measured, shlex.join(["glmc", *sys.argv[1:]]), everyone)
    text = markdown(made)
    if output is not None:
        _write(output, made, text, profile)
        _write_page(output, made)
    if json:
        show.data(made)
    elif output is None:
        sys.stdout.write(text)
    else:
        sys.stdout.write(f"{output}\n")
    if profile and not json and made["profile"]:
        show.console(stderr=True).print(*profile_tables(made["profile"]))
    if measured.interrupted:
        raise KeyboardInterrupt
    for fault in measured.failed.values():
        raise fault


def profile_tables(profile: dict[str, Any]) -> list[Any]:
    """A table a step: every call with its region, kernel and microseconds."""
    return [show.rows(f"{step['name']}: {step['us']:.1f} us a step, {step['tokens']} tokens, {step['samples']} steps",
                      ("region", "op", "kernel", "calls a step", "us a step", "share"),
                      [(*(row[name] for name in ("region", "op", "kernel", "calls", "us")), f"{row['share']:.1%}")
                       for row in step["ops"]])
            for step in profile["steps"]]


def _numbers(name: str, text: str) -> list[int]:
    """"1,2,3" as numbers. Raises UsageError."""
    words = text.split(",")
    if not all(word.strip().isdecimal() and len(word.strip()) < 10 for word in words):
        raise UsageError("this is no list of whole numbers", field=f"--{name}", expected="numbers separated by commas",
                         found=text)
    return [int(word) for word in words]


def _write_page(folder: Path, made: dict[str, Any]) -> None:
    """The page, or on stderr why there is none: the measurement itself is not lost for it."""
    from glmc.bench.web_page import web_page

    try:
        (folder / NAMES[2]).write_text(web_page(made), encoding="utf-8")
    except MissingPackage as fault:
        show.talk(f"no {NAMES[2]}: {fault.what}; {fault.hint}")


def _write(folder: Path, made: dict[str, Any], text: str, traced: bool) -> None:
    """The report's files. Raises StorageError."""
    files = {NAMES[0]: json_text.dumps(made, indent=1, allow_nan=False) + "\n", NAMES[1]: text}
    if traced and made["profile"]:
        from glmc.bench.trace_events import trace_events

        files[NAMES[3]] = json_text.dumps(trace_events(made["profile"])) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_text(content, encoding="utf-8")
    except OSError as fault:
        raise StorageError("the report cannot be written", file=fault.filename or folder, found=fault.strerror) from fault
