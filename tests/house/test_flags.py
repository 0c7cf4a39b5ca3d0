"""The command line is a contract: its verbs and flags are the frozen list in flags.txt."""

from __future__ import annotations

import importlib

import typer
from house.source import ROOT

GOLDEN = ROOT / "tests/house/flags.txt"


def flags(app: typer.Typer) -> list[str]:
    """One line a verb and one a spelling of each of its options, sorted: `run`, `run --prompt`."""
    group = typer.main.get_command(app)
    lines = [f"glmc {spelling}" for option in group.params for spelling in option.opts]
    for verb, command in group.commands.items():
        lines.append(verb)
        spellings = [text for option in command.params for text in (*option.opts, *option.secondary_opts)]
        lines += [f"{verb} {spelling}" for spelling in spellings if spelling.startswith("-")]
    return sorted(lines)


def difference(golden: list[str], found: list[str]) -> str | None:
    """What to say about a changed command line, or None."""
    if golden == found:
        return None
    new, gone = sorted(set(found) - set(golden)), sorted(set(golden) - set(found))
    return (f"the command line changed: new {new}, gone {gone}. Scripts rely on it. If the change is meant, run "
            "`python -m pytest tests/house/test_flags.py --update-goldens` and say so in the commit")


def test_the_flags_are_the_frozen_ones(update_goldens):
    found = flags(importlib.import_module("glmc.cli.main").app)
    if update_goldens:
        GOLDEN.write_text("".join(f"{line}\n" for line in found), encoding="utf-8")
    assert GOLDEN.exists(), "tests/house/flags.txt is missing: make it with --update-goldens"
    fault = difference(GOLDEN.read_text(encoding="utf-8").splitlines(), found)
    assert not fault, fault


def test_a_changed_flag_is_found():
    app = typer.Typer(add_completion=False)

    @app.command()
    def run(out: str, seed: int = 0, raw: bool = False) -> None:
        """A verb."""

    @app.command()
    def doctor() -> None:
        """Another, so that typer keeps the verbs."""

    assert flags(app) == ["doctor", "run", "run --no-raw", "run --raw", "run --seed"]
    assert difference(flags(app), flags(app)) is None
    assert "--update-goldens" in difference(["run", "run --speed"], flags(app))
