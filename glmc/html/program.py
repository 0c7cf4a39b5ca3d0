"""The page that draws a program: its steps, folded, and each region before and after the passes. No torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmc.html.folded import Call, folded, span
from glmc.html.page import Markup, Section, code, escaped, page, paragraph, points, table
from glmc.html.region import Sheet, region_parts, ways
from glmc.program import MOVES, Region

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Pictured:
    """What is drawn. parts: each part of the program, as program.json has it. texts: region -> its text. kept: weight -> the
    form in which it is kept. drawing: drawing.json, {} where there is none. ledger: the rows of ledger.json. facts: what
    else stands at the top, by name."""

    title: str
    facts: Mapping[str, Any]
    parts: Mapping[str, Mapping[str, Any]]
    texts: Mapping[str, str]
    ledger: Sequence[Mapping[str, Any]]
    drawing: Mapping[str, Any] = field(default_factory=dict)
    kept: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: Sequence[str] = ()


def program_page(given: Pictured) -> str:
    """The whole page. Raises DamagedArtifact for a region's text that cannot be read."""
    regions = {name: Region.parse(text) for name, text in given.texts.items()}
    steps = {name: folded(part, regions, given.kept) for name, part in given.parts.items()}
    order = dict.fromkeys(call.region for groups in steps.values() for group in groups for call in group)
    sheets = [Sheet(number, regions[name], sum(call.count for groups in steps.values() for group in groups for call in group
                                               if call.region == name), given.drawing)
              for number, name in enumerate(name for name in order if name not in MOVES)]
    anchors = {sheet.region.name: sheet.anchor for sheet in sheets}
    sections = [Section("program", "Program", _program(steps, given.parts, anchors)),
                *(Section(sheet.anchor, sheet.region.name, region_parts(sheet)) for sheet in sheets),
                Section("fusions", "Fusions", _fusions(given)),
                *([Section("notes", "Notes", [points(given.notes)])] if given.notes else [])]
    facts = "".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>" for name, value in given.facts.items())
    lead = [Markup(f'<dl class="facts">{facts}</dl>'), _find(), ways()]
    if not given.drawing:
        lead.append(points(["This artefact has no drawing.json: an earlier glmc made it. Its regions are drawn after the "
                            "passes only, without the sizes of what is between."], "note"))
    return page(given.title, lead, sections, (_HERE / "program.css").read_text(encoding="utf-8"),
                (_HERE / "program.js").read_text(encoding="utf-8"))


def _find() -> Markup:
    return Markup('<div class="find" role="search"><label for="find">Search</label>'
                  '<input id="find" type="search" autocomplete="off" spellcheck="false" '
                  'placeholder="an op, a weight, a site, a reason" aria-controls="found">'
                  '<fieldset class="sides"><legend>Show</legend>'
                  + "".join(f'<label><input type="radio" name="side" value="{value}">{word}</label>'
                            for value, word in (("both", "both"), ("before", "before"), ("after", "after")))
                  + '</fieldset><div id="found" aria-live="polite" hidden></div></div>')


def _program(steps: Mapping[str, list[list[Call]]], parts: Mapping[str, Mapping[str, Any]], anchors: Mapping[str, str],
             ) -> list[Markup]:
    """Every part as a list of folded calls."""
    most = max((call.elements for groups in steps.values() for group in groups for call in group), default=0) or 1
    made = []
    for name, groups in steps.items():
        calls = sum(call.count for group in groups for call in group)
        elements = sum(call.elements for group in groups for call in group)
        told = [f"{calls:,} calls", f"{count_text(elements)} elements of weights",
                parts[name].get("mode", "replicated").replace("_", " ")]
        told += [f"engine {parts[name]['engine']}"] if parts[name].get("engine") else []
        if len(steps) > 1:
            made.append(Markup(f"<h3>{escaped(name)}</h3>"))
        made.append(paragraph(", ".join(told), "lead"))
        items = "".join(_group(group, anchors, most) for group in groups)
        made.append(Markup(f'<ol class="runs">{items}</ol>'))
    return made


def _group(group: list[Call], anchors: Mapping[str, str], most: int) -> str:
    if len(group) == 1:
        return f"<li>{_call(group[0], anchors, most)}</li>"
    inner = "".join(f"<li>{_call(call, anchors, most)}</li>" for call in group)
    return f'<li><p class="again">{group[0].count} times, one after another:</p><ol class="runs">{inner}</ol></li>'


def _call(call: Call, anchors: Mapping[str, str], most: int) -> str:
    if call.region in MOVES:
        times = [f"{call.count} times"] if call.count > 1 else []
        return f'<p class="move">{code(call.region).text} between ranks: {escaped(", ".join([call.told, *times]))}</p>'
    layers = call.region.rsplit("_", 1)[0]
    if call.layers:
        layers = f"layer{'s' if len(call.layers) > 1 else ''} {span(call.layers)}"
    share = max(round(100 * call.elements / most, 1), 0.5 if call.elements else 0)
    head = (f'<summary><span class="who">{escaped(layers)}</span> '
            f'<a href="#{anchors[call.region]}">{code(call.region).text}</a> <span class="times">&times; {call.count}</span> '
            f'<span class="size">{count_text(call.elements)}</span>'
            f'<span class="bar" aria-hidden="true"><i style="width:{share}%"></i></span></summary>')
    rows = [(one.role, code(one.local), Markup(f'<code data-p="{escaped(one.name)}">{escaped(one.name)}</code>'),
             code(one.spec), one.form, f"{one.elements:,}" if one.role == "weight" else "") for one in call.bound]
    pick = ""
    if len(call.layers) > 1:
        low, high = min(call.layers), max(call.layers)
        pick = (f'<p class="pick"><label>bound at layer <input type="number" min="{low}" max="{high}" '
                f'data-layers="{escaped(span(call.layers))}" placeholder="*"></label> of {escaped(span(call.layers))}; '
                "* stands for its number</p>")
    told = paragraph(f"Of the {call.told} alone, unless all are asked for.", "lead").text if call.told else ""
    return (f"<details>{head}{told}{pick}"
            + table(f"what {call.region} is bound to",
                    ("role", "in the region", "bound to", "dtype and sizes", "kept as", "elements"), rows, words=5).text
            + "</details>")


def count_text(count: float) -> str:
    """1500000 -> "1.5 M"."""
    for unit in ("", " K", " M", " G"):
        if count < 1000:
            return f"{count:.3g}{unit}" if unit else f"{count:.0f}"
        count /= 1000
    return f"{count:.3g} T"


def _fusions(given: Pictured) -> list[Markup]:
    """The ledger, every site with layers folded, and what was refused with its reason."""
    kept = [row for row in given.ledger if row["expected"] or row["proved"]]
    made = [table("the ledger: sites of each fusion", ("fusion", "expected", "proved", "taken", "refused", "predicted us/token",
                                                       "measured us/token"),
                  [(row["fusion"], row["expected"], row["proved"], row["taken"], len(row["refused"]), _us(row["predicted_us"]),
                    _us(row["measured_us"])) for row in kept])]
    known = given.drawing.get("sites", ())
    if known:
        made.append(Markup('<h3 id="sites">Sites</h3>'))
        made.append(table("every proved site", ("fusion", "place", "layers", "what became of it", "sites"),
                          [(one["fusion"], code(one["place"]), one["layers"], _fate(one["reason"]), one["count"])
                           for one in known], words=4))
    elif refused := _refused(kept):
        made.append(Markup('<h3 id="refused">Refused</h3>'))
        made.append(table("sites that were proved and not taken", ("fusion", "reason", "sites"), refused, words=2))
    return made


def _us(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def _fate(reason: str | None) -> Markup:
    return Markup('<span class="good">taken</span>') if reason is None else Markup(
        f'<span class="bad">refused</span>: {escaped(reason)}')


def _refused(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, int]]:
    """(fusion, reason, sites); reasons that differ in the layer's number alone count as one."""
    counted = Counter((row["fusion"], re.sub(r"\b(layers?|blocks)\.\d+", r"\1.*", one["reason"]))
                      for row in rows for one in row["refused"])
    return [(fusion, reason, count) for (fusion, reason), count in sorted(counted.items())]
