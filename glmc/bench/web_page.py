"""A report as one self-contained page: plots, tables and the ledger, readable offline, in the dark and on a phone."""

from __future__ import annotations

from typing import Any

from glmc.bench import markdown, plots
from glmc.html.page import Markup, Section, code, escaped, figure, folded, page, paragraph, points, table
from glmc.html.plot import there

_MOST_REASONS, _DRAWN, _SAID = 200, 6, 5


def web_page(report: dict[str, Any]) -> str:
    """The page. Raises MissingPackage without matplotlib."""
    there()
    artifact, said = report["artifact"], report["noise"]["said"]
    lead = [paragraph(_coded(line.strip("*")), "bad" if line.startswith("**") else "lead") for line in markdown.facts(report)]
    lead.append(points(said[:_SAID], "note") if said else paragraph(markdown.noise_text(report), "lead"))
    if said[_SAID:]:
        lead.append(folded(f"{len(said) - _SAID} more disturbances", points(said[_SAID:])))
    sections = [*_results(report), *_profile(report), *_starts(report), Section("ledger", "Ledger", _ledger(report)),
                Section("resources", "Memory and energy", [table("Peak memory and energy", *markdown.resources(report))])]
    return page(f"glmc bench: {artifact['name']}", lead, sections)


def _coded(line: str) -> Markup:
    """Markdown's `code` as the page has it."""
    return Markup("".join(code(part).text if number % 2 else escaped(part) for number, part in enumerate(line.split("`"))))


def _results(report: dict[str, Any]) -> list[Section]:
    if not report["results"] or not report["probe"]:
        return []
    first = report["contenders"][0]["name"]
    parts: list[Markup] = []
    for number, test in enumerate(dict.fromkeys(one["test"] for one in report["results"])):
        found = [one for one in report["results"] if one["test"] == test]
        rounds = f"{found[0]['rounds_kept']} of {report['work']['num_iters']} rounds"
        caption = f"How the samples of {test} are distributed."
        parts += [Markup(f"<h3>{code(test).text}</h3>"),
                  table(f"Latencies of {test}, {rounds}", *markdown.latencies(report, found, first), words=2),
                  table(f"Rates of {test}", *markdown.rates(report, found), words=2)]
        if number < _DRAWN:
            parts.append(figure(f"spread{number}", plots.distributions(report, test), caption,
                                f"{caption} TTFT and ITL; the table above has their percentiles."))
    roof = figure("roofline", plots.roofline(report), "Hollow: reading the prompts. Full: a decode step. What stays in a cache "
                  "near the cores may stand above the roof of main memory.", _roofline_in_words(report))
    rates = figure("rates", plots.rates(report), "Means, with one standard deviation.",
                   "Tokens a second over the length of the prompt; the tables above have the figures.")
    return [Section("results", "Latencies and rates", parts),
            Section("rates", "Tokens a second by batch and context", [rates]),
            Section("roofline", "Roofline", [roof, table("What the machine can do", *markdown.probes(report))])]


def _roofline_in_words(report: dict[str, Any]) -> str:
    said = [f"{one['contender']} {one['test']}: decoding at {one['metrics']['tpot']['of_bound']:.0%} of the bound"
            for one in report["results"] if one["metrics"]["tpot"] and one["metrics"]["tpot"]["of_bound"]]
    return "Operations a second over operations a byte, below the probed roof. " + "; ".join(said)


def _profile(report: dict[str, Any]) -> list[Section]:
    """Where the time of a decode step goes; every call is folded away."""
    steps = {step["name"]: step for step in (report["profile"] or {"steps": []})["steps"]}
    if "decode" not in steps:
        return []
    found = steps["decode"]
    caption = (f"A step of {found['us']:.0f} us behind {found['context']} tokens, of which {found['inside_us']:.0f} us inside "
               f"the calls: means over the middle half of {found['samples']} steps.")
    described = "Microseconds of a decode step by region and kernel; the table has them."
    parts = [figure("step", plots.step(found), caption, described),
             table("By region and kernel", *markdown.profiled(report), words=2)]
    for step in steps.values():
        rows = [[row["region"], row["op"], row["kernel"], row["calls"], f"{row['us']:.2f}", f"{row['share']:.1%}"]
                for row in step["ops"]]
        heads = ("region", "op", "kernel", "calls", "us a step", "share")
        calls = table(f"{step['name']}, {step['tokens']} tokens", heads, rows, words=3)
        parts.append(folded(f"Every call of {step['name']}", calls))
    return [Section("step", "Where a decode step's time goes", parts)]


def _starts(report: dict[str, Any]) -> list[Section]:
    heads, rows = markdown.cold_starts(report)
    if not rows:
        return []
    caption = "From starting a process to its first token; files are in the page cache."
    drawn = figure("start", plots.cold_start(report), caption,
                   "The phases of a cold start, one after another; the table has their milliseconds.")
    return [Section("start", "Cold start", [drawn, table("Milliseconds of each phase, medians", heads, rows)])]


def _ledger(report: dict[str, Any]) -> list[Markup]:
    """The ledger, the gains with it, and the reasons of what was refused."""
    parts = [table("Sites of each fusion, and what they are worth", *markdown.ledger(report))]
    rows = [(row["fusion"], one["site"], one["reason"]) for row in report["artifact"]["ledger"] for one in row["refused"]]
    if rows:
        more = f", the first {_MOST_REASONS}" if len(rows) > _MOST_REASONS else ""
        parts.append(folded(f"{len(rows)} sites were refused", table(
            f"Refused sites and why{more}", ("fusion", "site", "reason"), rows[:_MOST_REASONS], words=3)))
    return parts
