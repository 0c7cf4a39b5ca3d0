"""The shell of a self-contained page: its style, its tables, its drawings. Whatever comes from outside is escaped here.

A page loads nothing: its policy forbids it, and its own script, where it has one, stands in it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

SERIES = ("--series-1", "--series-2", "--series-3", "--series-4", "--series-5", "--series-6")
"""Colours of a drawing's parts, as the style names them: each readable on the light and on the dark ground."""

_STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --raised: #f4f5f7; --ink: #1b1f24; --faint: #5b6470; --line: #d5dae0;
  --accent: #0b62c4; --good: #19722f; --bad: #b3261e; --series-1: #0b62c4; --series-2: #b3550a; --series-3: #19722f;
  --series-4: #8a2be2; --series-5: #a3195b; --series-6: #5b6470; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --raised: #1e2329; --ink: #e6e9ed; --faint: #a3adb8;
  --line: #39424c; --accent: #6cb2ff; --good: #6fd08c; --bad: #ff8a80; --series-1: #6cb2ff; --series-2: #ffb05c;
  --series-3: #6fd08c; --series-4: #c9a2ff; --series-5: #ff8fbf; --series-6: #a3adb8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem clamp(0.75rem, 3vw, 2.5rem) 4rem; max-width: 76rem; background: var(--ground);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.25rem 0 0.5rem; }
h3 { font-size: 1.05rem; margin: 1.25rem 0 0.25rem; }
a { color: var(--accent); }
nav ul { display: flex; flex-wrap: wrap; gap: 0.25rem 1rem; padding: 0; margin: 0.75rem 0; list-style: none; }
code { font: 0.92em ui-monospace, monospace; overflow-wrap: anywhere; }
.lead { color: var(--faint); margin: 0.25rem 0; overflow-wrap: anywhere; }
.good { color: var(--good); } .bad { color: var(--bad); }
.note { border-left: 0.25rem solid var(--bad); background: var(--raised); padding: 0.5rem 0.75rem; margin: 0.75rem 0; }
.note { overflow-wrap: anywhere; } .note ul { margin: 0; padding-left: 1.1rem; }
.scroll { overflow-x: auto; margin: 0.5rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.92rem; }
caption { text-align: left; color: var(--faint); padding: 0.25rem 0; }
th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid var(--line); white-space: nowrap; }
.number { text-align: right; white-space: nowrap; }
tbody tr:hover { background: var(--raised); }
figure { margin: 0.75rem 0; } .drawn { overflow-x: auto; } figcaption { color: var(--faint); font-size: 0.92rem; }
.drawn svg { width: 100%; height: auto; min-width: 34rem; max-width: 60rem; display: block; }
summary { cursor: pointer; color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
@media print { nav { display: none; } }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'unsafe-inline'"


@dataclass(frozen=True)
class Markup:
    """Text that is HTML already. Everything else is escaped."""

    text: str


@dataclass(frozen=True)
class Section:
    """A part of a page. name: its anchor, in lower-case letters and dashes."""

    name: str
    title: str
    parts: Sequence[Markup]


def page(title: str, lead: Iterable[Markup], sections: Iterable[Section], style: str = "", script: str = "") -> str:
    """A whole page. style, script: of the page's own, besides the shell's; neither may hold what comes from outside."""
    there = list(sections)
    contents = "".join(f'<li><a href="#{one.name}">{escaped(one.title)}</a></li>' for one in there)
    body = "".join(f'<section aria-labelledby="{one.name}"><h2 id="{one.name}">{escaped(one.title)}</h2>\n'
                   + "\n".join(part.text for part in one.parts) + "\n</section>\n" for one in there)
    return ('<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<link rel="icon" href="data:,">\n<title>{escaped(title)}</title>\n'
            f"<style>{_STYLE}{style}</style>\n</head>\n<body>\n"
            f"<header><h1>{escaped(title)}</h1>\n" + "\n".join(part.text for part in lead) + "</header>\n"
            f'<nav aria-label="Contents"><ul>{contents}</ul></nav>\n<main>\n{body}</main>\n'
            + (f"<script>{script}</script>\n" if script else "") + "</body>\n</html>\n")


def escaped(value: Any) -> str:
    """`value` as text of a page; markup stays as it is."""
    if isinstance(value, Markup):
        return value.text
    text = str(value)
    return html.escape("".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text))


def paragraph(value: Any, kind: str = "") -> Markup:
    return Markup(f'<p class="{kind}">{escaped(value)}</p>' if kind else f"<p>{escaped(value)}</p>")


def points(values: Iterable[Any], kind: str = "") -> Markup:
    """A list; kind "note" sets it off as what must not be overlooked."""
    lines = "".join(f"<li>{escaped(value)}</li>" for value in values)
    return Markup(f'<div class="{kind}"><ul>{lines}</ul></div>' if kind else f"<ul>{lines}</ul>")


def code(value: Any) -> Markup:
    return Markup(f"<code>{escaped(value)}</code>")


def table(caption: str, heads: Sequence[Any], rows: Iterable[Sequence[Any]], words: int = 1) -> Markup:
    """A table that scrolls by itself on a narrow screen. words: how many of its first columns are no numbers."""
    def cell(value: Any, place: int, tag: str = "td") -> str:
        kind = "" if place < words else ' class="number"'
        scope = ' scope="col"' if tag == "th" else ""
        return f"<{tag}{scope}{kind}>{escaped('' if value is None else value)}</{tag}>"

    head = "".join(cell(value, place, "th") for place, value in enumerate(heads))
    body = "\n".join("<tr>" + "".join(cell(value, place) for place, value in enumerate(row)) + "</tr>" for row in rows)
    return Markup(f'<div class="scroll" role="region" aria-label="{escaped(caption)}" tabindex="0"><table>\n'
                  f"<caption>{escaped(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>")


def folded(summary: Any, *parts: Markup) -> Markup:
    """Parts that are shown when the summary is opened."""
    return Markup(f"<details><summary>{escaped(summary)}</summary>\n" + "\n".join(part.text for part in parts) + "</details>")


def figure(name: str, svg: str, caption: Any, description: str) -> Markup:
    """A drawing. name: makes its ids its own. description: what it shows, for those who do not see it."""
    drawn = svg[svg.index("<svg"):]
    drawn = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", drawn)
    opening = drawn[:drawn.index(">") + 1]
    labelled = re.sub(r'\s(width|height|role|aria-label)="[^"]*"', "", opening)[:-1] + \
        f' role="img" aria-label="{escaped(description)}">'
    return Markup(f'<figure><div class="drawn" tabindex="0" role="group" aria-label="{escaped(caption)}">{labelled}'
                  f"{drawn[len(opening):]}</div><figcaption>{escaped(caption)}</figcaption></figure>")
