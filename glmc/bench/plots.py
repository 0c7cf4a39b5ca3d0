"""A report's five pictures: the roofline, distributions, rates, a step's time, cold starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glmc.bench.bound import Traffic
from glmc.bench.report import PHASES
from glmc.bench.sample import Sample
from glmc.bench.work import Work
from glmc.html.plot import COLOURS, FAINT, INK, MARKS, drawn, legend_below

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_REGIONS, _KERNELS, _DECADES = 14, 5, 200


def _style(report: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Contender -> its colour and mark, the same in every plot."""
    return {one["name"]: (COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)]) for i, one in enumerate(report["contenders"])}


def _work(result: dict[str, Any]) -> Work:
    return Work(result["input_len"], result["output_len"], result["batch_size"])


def roofline(report: dict[str, Any]) -> str:
    """GFLOP/s over operations a byte: what the probes allow as the roof, each prefill and decode step below it."""
    probe, style = report["probe"], _style(report)
    peak, bandwidth = max(probe["matrix_gflops"].values()), probe["read_gb_per_second"]
    own = {one["name"]: Traffic(**one["facts"]["traffic"]) for one in report["contenders"]
           if one["facts"] and one["facts"].get("traffic")}
    first = own[report["contenders"][0]["name"]]

    def paint(axes: Axes) -> None:
        seen, told = [peak / bandwidth], set()
        for one in report["results"]:
            traffic = own.get(one["contender"], first)
            for part, metric, filled in (("prefill", "ttft", False), ("decode", "tpot", True)):
                if (found := one["metrics"][metric]) is None:
                    continue
                moved, done = getattr(traffic, part)(_work(one))
                colour, mark = style[one["contender"]]
                label = f"{one['contender']}, {part}"
                axes.plot([done / moved], [done / found["median"] / 1e6], mark, color=colour, markersize=8,
                          fillstyle="full" if filled else "none", label=None if label in told else label)
                told.add(label)
                seen.append(done / moved)
        low, high = min(seen) / 3, max(seen) * 3
        at = [low, peak / bandwidth, high]
        axes.plot(at, [min(peak, bandwidth * x) for x in at], color=INK,
                  label=f"{bandwidth:.3g} GB/s, {peak:.3g} GFLOP/s probed")
        axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="GFLOP/s")
        legend_below(axes)

    return drawn(paint, height=4.6)


def distributions(report: dict[str, Any], test: str) -> str:
    """How many of the samples lie below: TTFT on the left, ITL on the right (TPOT of who does not stream)."""
    from matplotlib.ticker import LogLocator, NullFormatter

    style = _style(report)

    def paint(left: Axes, right: Axes) -> None:
        for one in (r for r in report["results"] if r["test"] == test):
            samples = [Sample.from_json(rows) for rows in one["rounds"]]
            rows = [row for sample in samples for row in sample.rows]
            gaps = [gap for row in rows for gap in row.itl]
            colour, mark = style[one["contender"]]
            for axes, values in ((left, [row.ttft for row in rows]), (right, gaps or [row.tpot for row in rows if row.tpot])):
                if values:
                    axes.ecdf([max(value * 1e3, 1e-6) for value in values], color=colour, label=one["contender"], marker=mark,
                              markevery=max(1, len(values) // 8), markersize=5)
        for axes, name in ((left, "time to first token, ms"), (right, "inter-token latency, ms")):
            axes.set(xscale="log", xlabel=name, ylim=(0, 1.02))
            low, high = axes.get_xlim()
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high > _DECADES * low else (1.0, 2.0, 5.0)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        left.set_ylabel("share of the samples")
        legend_below(left)

    return drawn(paint, columns=2, height=3.8)


def rates(report: dict[str, Any]) -> str:
    """Tokens a second over the context: prefill on the left, decoding on the right, a line a contender and batch."""
    from matplotlib.ticker import MaxNLocator

    style = _style(report)

    def paint(left: Axes, right: Axes) -> None:
        lines: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for one in report["results"]:
            lines.setdefault((one["contender"], one["batch_size"]), []).append(one)
        for number, ((name, batch), found) in enumerate(lines.items()):
            colour, mark = style[name]
            label = name if batch == 1 else f"{name}, {batch} rows"
            for axes, place in ((left, 0), (right, 1)):
                points = sorted((one["input_len"], one["llama_bench"][place]["avg_ts"], one["llama_bench"][place]["stddev_ts"])
                                for one in found if len(one["llama_bench"]) > place)
                if points:
                    x, y, error = zip(*points, strict=True)
                    axes.errorbar(x, y, error, color=colour, marker=mark, capsize=3, label=label,
                                  linestyle=("-", "--", ":", "-.")[number % 4])
        for axes, name in ((left, "prefill"), (right, "decoding")):
            axes.set(xlabel="tokens of the prompt", ylabel=f"{name}, tokens/s", ylim=(0, None))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_below(left)

    return drawn(paint, columns=2, height=3.8)


def step(found: dict[str, Any]) -> str:
    """Microseconds of a decode step: a bar a region, in it the kernels that take most of it."""
    regions = [row["region"] for row in found["regions"][:_REGIONS]]
    totals: dict[str, float] = {}
    for row in found["kernels"]:
        totals[row["kernel"]] = totals.get(row["kernel"], 0.0) + row["us"]
    kernels = sorted(totals, key=lambda name: -totals[name])[:_KERNELS]

    def paint(axes: Axes) -> None:
        left = dict.fromkeys(regions, 0.0)
        for number, kernel in enumerate((*kernels, None)):
            named = {region: sum(row["us"] for row in found["kernels"] if row["region"] == region
                                 and (row["kernel"] == kernel if kernel else row["kernel"] not in kernels))
                     for region in regions}
            if any(named.values()):
                axes.barh(regions, list(named.values()), left=list(left.values()), label=kernel or "others", height=0.7,
                          color=COLOURS[number % len(COLOURS)], edgecolor=FAINT, linewidth=0.4)
                left = {region: left[region] + named[region] for region in regions}
        axes.invert_yaxis()
        axes.set_xlabel("microseconds a step")
        legend_below(axes)

    return drawn(paint, height=1.7 + 0.36 * len(regions))


def cold_start(report: dict[str, Any]) -> str:
    """Seconds from starting a process to its first token: the phases one after another, a bar a contender."""
    started = [one for one in report["contenders"] if one["cold_start"]]
    names = [name for name in PHASES if any(name in one["cold_start"]["phases"] for one in started)]

    def paint(axes: Axes) -> None:
        for place, one in enumerate(started):
            at = 0.0
            for name in names:
                taken = one["cold_start"]["phases"].get(name, {"median": 0.0})["median"]
                number = names.index(name)
                axes.barh([place], [taken], left=at, height=0.6, color=COLOURS[number % len(COLOURS)], edgecolor=FAINT,
                          linewidth=0.4, hatch="//" if number >= len(COLOURS) else None,
                          label=name.replace("_", " ") if taken else None)
                at += taken
        axes.set_yticks(range(len(started)), [one["name"] for one in started])
        axes.invert_yaxis()
        axes.set_xlabel("seconds since the process was started")
        legend_below(axes, 4)

    return drawn(paint, height=1.9 + 0.5 * len(started))
