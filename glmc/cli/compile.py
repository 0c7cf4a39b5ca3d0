"""`glmc compile`: the whole road from a checkpoint to a sealed artefact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import glmc
from glmc.cli import arguments, show
from glmc.cli.outcome import outcome
from glmc.cli.progress import progress
from glmc.errors import OutputExists
from glmc.target import compilable

Destination = Annotated[Path, typer.Option("-o", metavar="OUT", help="The artefact's folder; it must not exist.",
                                           show_default=False)]
Dtype = Annotated[Literal["auto", "float32", "bfloat16"], typer.Option("--dtype", help="auto: what config.json says.")]
Quant = Annotated[Literal["none", "int8", "int4"], typer.Option("--quant", help="Weights as integers.")]
Weights = Annotated[Literal["copy", "link"], typer.Option(
    "--weights", help="link: a weight that is a tensor of the checkpoint stays in its file, which the artefact shares.")]
MaxLen = Annotated[int | None, typer.Option("--max-len", metavar="N", show_default="4096, or the model's positions",
                                            help="Most tokens a row, prompt and answer together.")]
MaxBatch = Annotated[int, typer.Option("--max-batch", metavar="N", help="Most rows at once.")]


def compile(source: arguments.Source, out: Destination, target: arguments.TargetName = "cpu", dtype: Dtype = "auto",
            quant: Quant = "none", max_len: MaxLen = None, max_batch: MaxBatch = 1,
            weights: Weights = "copy", json: arguments.Json = False) -> None:
    """Compile a checkpoint into one sealed artefact and print its path."""
    compilable(arguments.target_name(target))
    arguments.checkpoint(source)
    if out.exists() or out.is_symlink():  # said before torch is imported; the writer asks again when it counts
        raise OutputExists("the output is there already", file=out)
    with outcome() as made, progress() as report:
        made.finished = glmc.compile(source, out, target=target, dtype=dtype, quant=None if quant == "none" else quant,
                                       max_len=max_len, max_batch=max_batch, weights=weights, progress=report)
    artifact = made.finished
    ledger = artifact.json("ledger.json")
    if json:
        show.data({"path": str(artifact.folder), "digest": artifact.manifest["digest"], "files": artifact.files, **ledger,
                   **made.told()})
    else:
        show.console(stderr=True).print(*show.ledger(ledger["ledger"]))
        for note in ledger["notes"]:
            show.talk(f"note: {show.terminal_safe(note)}")
        typer.echo(artifact.folder)
    made.leave(told=json)
