"""One region on the page: both drawings side by side, the fusions in it, what was refused, its lines as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glmc.html.graph import Frame, drawn
from glmc.html.page import Markup, code, escaped, folded, paragraph, table
from glmc.html.steps import RESULT, Step, steps
from glmc.program import Region


@dataclass(frozen=True)
class Sheet:
    """A region to draw. number: its place on the page. drawing: drawing.json, {} where there is none."""

    number: int
    region: Region
    calls: int
    drawing: Mapping[str, Any]

    @property
    def anchor(self) -> str:
        return f"region-{self.number}"

    @property
    def told(self) -> Mapping[str, Any]:
        """What drawing.json says of the region."""
        return self.drawing.get("regions", {}).get(self.region.name, {})


def region_parts(sheet: Sheet) -> list[Markup]:
    """Raises DamagedArtifact for a plain text that cannot be read."""
    told = sheet.told
    after = steps(sheet.region, told.get("shapes", {}))
    sites: Sequence[Mapping[str, Any]] = told.get("sites", ())
    taken = {number: site for number, site in enumerate(sites) if site["line"]}
    same = {line: f"p{number}" for number, line in enumerate(told.get("same", {}))}
    keys = {**same, **{site["line"]: f"s{number}" for number, site in taken.items()}}
    panes, texts = [], []
    before: list[Step] = []
    if told:
        plain = sheet.drawing["plain"][told["plain"]]
        region = Region.parse(plain["text"])
        before = steps(region, plain["shapes"])
        there = {step.name for step in before}
        frames = [frame for number, site in taken.items()
                  if (frame := Frame(f"s{number}", site["fusion"], frozenset(site["lines"]) & there)).steps]
        plain_keys = {**{told["same"][line]: key for line, key in same.items()},
                      **{line: f"s{number}" for number, site in taken.items() for line in site["lines"]}}
        svg = drawn(before, f"{sheet.region.name} before the passes", plain_keys, {}, frames)
        panes.append(_pane(sheet, "before", svg, _steps(before)))
        texts.append(folded("text before the passes", _lines(region, "before")))
    panes.append(_pane(sheet, "after", drawn(after, f"{sheet.region.name} after the passes", keys,
                                             told.get("kernels", {})), _steps(after)))
    texts.insert(0, folded("text after the passes, which is what runs", _lines(sheet.region, "after")))
    lead = f"{sheet.calls:,} {'call' if sheet.calls == 1 else 'calls'}; " + (
        f"{_steps(before)} became {_steps(after)}, {len(taken)} of them fused." if told else f"{_steps(after)}.")
    lead += f" Steps that name no kernel {told['others']}." if told else ""
    return [paragraph(lead, "lead"), Markup(f'<div class="pair">{"".join(panes)}</div>'),
            *_fused(taken, told.get("kernels", {})), *_refused(sites), *texts]


def ways() -> Markup:
    """How to read the drawings."""
    marks = "".join(f'<span class="mark {kind}">{word}</span>' for kind, word in (
        ("fused", "fused op"), ("product", "product"), ("plain", "other step"), ("view", "moves or views data"),
        ("io", "input or result")))
    return Markup(f'<p class="legend">{marks}</p><p class="lead">Point at a fused op, or tap it, to see the plain steps that '
                  "it swallowed, and the other way round. In a drawing the arrow keys go from step to step, Enter holds one, "
                  "Escape lets go. Sizes: B rows, S new tokens, L slots.</p>")


def _steps(found: Sequence[Step]) -> str:
    count = sum(step.kind == "step" for step in found)
    return f"{count} step" if count == 1 else f"{count} steps"


def _pane(sheet: Sheet, side: str, svg: Markup, count: str) -> str:
    title = f"{side} the passes"
    buttons = "".join(f'<button type="button" data-zoom="{step}" aria-label="{said}, {title}">{word}</button>'
                      for step, said, word in (("-", "smaller", "&minus;"), ("+", "larger", "+"),
                                               ("fit", "fit the width", "fit")))
    return (f'<div class="pane {side}"><div class="bar"><h3>{title} <span class="count">{count}</span></h3>'
            f'<span class="zoom">{buttons}</span></div><div class="canvas" tabindex="0" role="region" '
            f'aria-label="{escaped(sheet.region.name)} {title}">{svg.text}</div></div>')


def _fused(taken: Mapping[int, Mapping[str, Any]], kernels: Mapping[str, str]) -> list[Markup]:
    rows = [(Markup(f'<button type="button" class="go" data-k="s{number}">{escaped(site["fusion"])}</button>'),
             code(site["place"]), kernels.get(site["line"], "in another line's call"), len(site["lines"]),
             f"{site['gain_us']:,.2f}") for number, site in taken.items()]
    heads = ("fusion", "place", "runs", "steps swallowed", "predicted us/call")
    return [table("fusions in this region", heads, rows, words=3)] if rows else []


def _refused(sites: Sequence[Mapping[str, Any]]) -> list[Markup]:
    rows = [(Markup(f'<button type="button" class="go" data-lines="{escaped(" ".join(site["lines"]))}">'
                    f'{escaped(site["fusion"])}</button>'), code(site["place"]), site["reason"], len(site["lines"]))
            for site in sites if not site["line"]]
    return [table("proved here and refused", ("fusion", "place", "reason", "steps"), rows, words=3)] if rows else []


def _lines(region: Region, side: str) -> Markup:
    names = [line.split(" = ")[0] if " = " in line else RESULT for line in region.body]
    items = "".join(f'<li data-n="{escaped(name)}">{code(line).text}</li>'
                    for name, line in zip(names, region.body, strict=True))
    inputs = table("inputs", ("name", "role", "dtype and sizes"),
                   [(code(name), role, code(spec.text())) for name, role, spec in region.inputs], words=3)
    return Markup(f'{inputs.text}<ol class="lines" data-side="{side}">{items}</ol>')
