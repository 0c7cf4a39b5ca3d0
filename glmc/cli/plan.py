"""`glmc plan`: what the compiler will do with a model, from its configuration alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

import glmc
from glmc.cli import arguments, pages, show
from glmc.cli.outcome import outcome
from glmc.cli.progress import progress
from glmc.html.program import Pictured, program_page
from glmc.target import LINKS

if TYPE_CHECKING:
    from glmc.planner import Plan

Source = Annotated[Path, typer.Argument(metavar="SOURCE", help="A checkpoint folder or a config.json.",
                                        show_default=False)]


Ranks = Annotated[int, typer.Option("--ranks", metavar="N", help="Foretell what each stage takes on so many ranks.")]
LinkName = Annotated[str, typer.Option("--link", metavar="L", help=f"What is between them: one of {', '.join(LINKS)}.")]


def plan(source: Source, target: arguments.TargetName = "cpu", ranks: Ranks = 1, link: LinkName = "loopback",
         html: pages.Html = None, json: arguments.Json = False) -> None:
    """Say what would be compiled: ledger, parameters, memory, roofline. Reads no weights."""
    arguments.target_name(target)
    arguments.existing(source)
    pages.free(html)
    with outcome() as made, progress() as report:
        made.finished = glmc.plan(source, target=target, progress=report, ranks=ranks, link=link)
    answer = made.finished
    if html is not None:
        pages.write(html, program_page(pictured(answer)))
    if json:
        show.data({**answer.to_json(), **made.told(), **({"html": str(html)} if html else {})})
        made.leave(told=True)
        return
    if html is not None:
        typer.echo(html)
        made.leave()
        return
    show.console().print(show.facts("model", _facts(answer)), *_forecast(answer.forecast),
                         *show.ledger(answer.ledger.to_json()))
    for note in answer.notes:
        show.talk(f"note: {show.terminal_safe(note)}")
    made.leave()


def pictured(answer: Plan) -> Pictured:
    """What the page of a plan shows."""
    return Pictured(f"{answer.architecture} for {answer.roofline['target']}, planned", _facts(answer),
                    ledger=answer.ledger.to_json(), notes=[*answer.ledger.broken, *answer.notes], **answer.pictured)


def _facts(answer: Plan) -> dict[str, Any]:
    parameters, memory, roofline, regions = answer.parameters, answer.memory, answer.roofline, answer.regions
    return {
        "architecture": f"{answer.architecture} ({answer.model_type}), {answer.layers} layers",
        "parameters": f"{parameters['total']:,}, of which a token uses {parameters['active_per_token']:,}",
        "regions": f"{regions['distinct']} distinct, {regions['calls']} calls",
        "weights": show.bytes_text(memory["weights_bytes"]),
        "KV cache": f"{show.bytes_text(memory['kv_bytes_per_token'])} a token",
        "peak memory": show.bytes_text(memory["peak_bytes"]),
        "roofline": f"{roofline['tokens_per_second']:g} tokens/s on {roofline['target']}, "
                    f"{show.bytes_text(roofline['bytes_per_token'])} read a token",
        **_media(answer.media),
    }


def _media(found: dict[str, Any] | None) -> dict[str, str]:
    if found is None:
        return {}
    image, video = found["image"], found["video"]
    return {"largest image": f"{image['width']} x {image['height']} pixels, {image['tokens']:,} tokens, "
                             f"{show.bytes_text(image['bytes'])} while it is seen",
            "largest video": f"{video['frames']} frames, {video['tokens']:,} tokens, with times and marks at most "
                             f"{video['text_tokens']:,}, {show.bytes_text(video['bytes'])} while it is seen"}


def _forecast(found: dict[str, Any] | None) -> list[Table]:
    if found is None:
        return []
    rows = [(row["stage"], row["mode"], f"{row['one_rank_seconds']:.3g} s", f"{row['seconds']:.3g} s", row["bound"])
            for row in found["stages"]]
    return [show.rows(f"foretold, not measured: {found['ranks']} ranks over {found['link']}",
                      ("stage", "over ranks", "one rank", f"{found['ranks']} ranks", "bound"), rows)]
