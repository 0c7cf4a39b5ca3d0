"""`glmc verify`: every byte of an artefact against its digest, its proofs, and its numbers against the published model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from glmc.artifact import LINKED, Artifact
from glmc.artifact_linked import summary
from glmc.cli import arguments, show
from glmc.cli.inspect import linked_text, proofs_table
from glmc.errors import NumericError, UsageError

Against = Annotated[Path | None, typer.Option("--against", metavar="CHECKPOINT", show_default=False,
                                              help="Compare every step with the published model of this checkpoint.")]


def verify(out: arguments.Out, against: Against = None, device: arguments.DeviceName = None, json: arguments.Json = False,
           ) -> None:
    """Compare every file of an artefact with its digest and print the stored proofs; compare it with the published model."""
    opened = Artifact.open(arguments.artifact(out))
    if against is not None:
        arguments.checkpoint(against)
    elif device is not None:
        raise UsageError("a device is for comparing", field="device", found=device, expected="--against CHECKPOINT with it")
    opened.verify()
    own = [entry["bytes"] for entry in opened.files.values() if "linked" not in entry]
    linked = summary(opened) if LINKED in opened.files else None
    stored = opened.json("proofs.json").get("proofs", []) if "proofs.json" in opened.files else []
    told: dict[str, Any] = {"digest": opened.manifest["digest"], "files": len(own), "bytes": sum(own),
                            "proofs": stored, **({"linked": linked} if linked else {})}
    if not json:
        screen = show.console()
        screen.print(f"{len(own)} files, {show.bytes_text(sum(own))}: every digest agrees")
        if linked:
            screen.print(f"linked, {linked_text(linked)}: every digest agrees", soft_wrap=True)
        if stored:
            screen.print(proofs_table(stored))
    if against is not None:
        told["against"] = found = _compare(opened, against, device, json)
    if json:
        show.data(told)
    if against is not None and found["first"] is not None:
        if json:
            raise typer.Exit(NumericError.exit)
        raise NumericError("the artefact and the published model differ", field=found["first"],
                           expected="every step within its limit")


def _compare(opened: Artifact, source: Path, device: str | None, quiet: bool) -> dict[str, Any]:
    """The comparison with the published model, as JSON; printed unless `quiet`."""
    from glmc.against import against

    same = _same(opened, source)
    if not same and not quiet:
        show.talk("note: the artefact was compiled from another checkpoint than this one")
    answer = against(opened, source, device=device)
    rows = [row.to_json() for row in answer.rows]
    if not quiet:
        columns = ("module", "form", "absolute_error", "relative_error", "limit", "ties", "verdict")
        screen = show.console()
        screen.print(show.rows(f"against the published model, {len(answer.tokens)} random tokens", columns,
                               [[row[c] for c in columns] for row in rows]))
        for note in answer.notes:
            screen.print(note, soft_wrap=True)
        screen.print("every module that is judged agrees" if answer.first is None
                     else f"first divergent module: {answer.first}", soft_wrap=True)
    return {"same_checkpoint": same, "first": answer.first, "rows": rows, "notes": answer.notes, "tokens": answer.tokens}


def _same(opened: Artifact, source: Path) -> bool:
    from glmc.checkpoint.components import open_checkpoint

    return opened.manifest["source"] == open_checkpoint(source).digest()
