"""What a verb's arguments name: a target, a checkpoint, an artefact. A refusal names the nearest thing that exists."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from glmc.artifact import MANIFEST
from glmc.errors import UnknownName, UsageError
from glmc.target import TARGETS, named

_SIBLINGS = 1000

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
TargetName = Annotated[str, typer.Option("--target", metavar="T", help=f"One of {', '.join(TARGETS)}.")]
DeviceName = Annotated[str | None, typer.Option(
    "--device", metavar="D", show_default=False,
    help="Where it runs: cuda:1, npu:0; triton-interpreted and npu-emulated check such an artefact on the CPU, slowly.")]
Source = Annotated[Path, typer.Argument(metavar="SOURCE", help="A Hugging Face checkpoint folder.", show_default=False)]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="An artefact made by `glmc compile`.", show_default=False)]


def nearest(word: str, known: Iterable[str]) -> str | None:
    """"did you mean X?" for the closest of `known`, or None when none is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean `{close[0]}`?" if close else None


def target_name(name: str) -> str:
    """The full name of the target called `name`. Raises UnknownName that names the nearest."""
    try:
        return named(name).name
    except UnknownName as fault:
        fault.hint = nearest(name, TARGETS)
        raise


def is_artifact(path: Path) -> bool:
    """Whether a folder looks like an artefact, damaged ones included."""
    return (path / MANIFEST).is_file() and (path / "program.json").is_file()


def existing(path: Path) -> Path:
    """`path`, if something is there. Raises UsageError that names a sibling of a similar name."""
    if path.exists():
        return path
    siblings: list[str] = []
    if path.parent.is_dir():
        siblings = [str(entry) for entry in itertools.islice(path.parent.iterdir(), _SIBLINGS)
                    if not entry.name.startswith(".")]
    raise UsageError("there is nothing at this path", file=path, hint=nearest(str(path), siblings))


def checkpoint(path: Path) -> Path:
    """The checkpoint folder `path`. Raises UsageError when nothing is there, or an artefact is."""
    if is_artifact(existing(path)):
        raise UsageError("this is an artefact, not a checkpoint", file=path,
                         expected="a Hugging Face checkpoint folder",
                         hint="`glmc run` runs it and `glmc inspect` shows it")
    return path


def artifact(path: Path) -> Path:
    """The artefact folder `path`. Raises UsageError when nothing is there, or a checkpoint is."""
    described = any((existing(path) / name).is_file() for name in ("config.json", "model_index.json"))
    if described and not (path / MANIFEST).exists():
        raise UsageError("this is a checkpoint, not an artefact", file=path, expected="a folder made by `glmc compile`",
                         hint=f"compile it first: glmc compile {path} -o NAME.glmc")
    return path
