"""`glmc verify`: every byte of an artefact against its digest, and the proofs that it carries."""

from __future__ import annotations

from glmc.artifact import Artifact
from glmc.cli import arguments, show
from glmc.cli.inspect import proofs_table


def verify(out: arguments.Out, json: arguments.Json = False) -> None:
    """Compare every file of an artefact with its digest and print the stored proofs."""
    opened = Artifact.open(arguments.artifact(out))
    opened.verify()
    total = sum(entry["bytes"] for entry in opened.files.values())
    stored = opened.json("proofs.json").get("proofs", []) if "proofs.json" in opened.files else []
    if json:
        show.data({"digest": opened.manifest["digest"], "files": len(opened.files), "bytes": total, "proofs": stored})
        return
    screen = show.console()
    screen.print(f"{len(opened.files)} files, {show.bytes_text(total)}: every digest agrees")
    if stored:
        screen.print(proofs_table(stored))
