"""A report as Markdown. A figure without its baseline, its spread, the machine and the command is not printed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from glmc.errors import InternalError, printable

_KERNELS = 12
NAMES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2EL"}


def markdown(report: dict[str, Any]) -> str:
    """The whole report but for the raw samples. Raises InternalError for a figure that lacks what makes it one."""
    work, artifact = report["work"], report["artifact"]
    parts = [
        f"# glmc bench: {_text(artifact['name'])}",
        "\n".join(f"* {line}" for line in facts(report)),
        "## Noise\n\n" + noise_text(report),
    ]
    first = report["contenders"][0]["name"]
    for test in dict.fromkeys(one["test"] for one in report["results"]):
        found = [one for one in report["results"] if one["test"] == test]
        requests = f"{found[0]['batch_size']} x {found[0]['input_len']} tokens in, {found[0]['output_len']} out"
        parts.append(f"## {test}\n\n{requests}, {found[0]['rounds_kept']} of {work['num_iters']} rounds\n\n"
                     + table(*latencies(report, found, first)) + "\n\n" + table(*rates(report, found)))
    parts += [f"## {title}\n\n{table(*made)}" for title, made in (
        ("Cold start", cold_starts(report)), ("Memory and energy", resources(report)),
        ("What the machine can do", probes(report)), ("Where a decode step's time goes", profiled(report)),
        ("Ledger", ledger(report))) if made[1]]
    return "\n\n".join(parts) + "\n"


def facts(report: dict[str, Any]) -> list[str]:
    """What the figures are of: state, artefact, proofs, work, machine, command."""
    work, artifact, machine, proofs = report["work"], report["artifact"], report["machine"], report["artifact"]["proofs"]
    state = [f"**partial: {_text(report['interrupted'])}**"] if report["interrupted"] else []
    for one in report["contenders"]:
        if fault := one["failed"]:
            found = f": {_text(fault['found'])}" if fault["found"] else ""
            state.append(f"**{_text(one['name'])} was not measured to the end: {_text(fault['what'])}{found}**")
    weights = ", ".join(filter(None, (work["dtype"], work["quant"])))
    proved = "no proofs stored"
    if proofs["distinct"]:
        proved = (f"{proofs['sites']} sites proved in {proofs['distinct']} kinds, worst kernel error "
                  f"{proofs['worst_kernel_error']:.3g} beside {proofs['worst_reference_error']:.3g} of the steps replaced")
    return [*state,
            f"artefact `{artifact['digest']}`, {artifact['family']}, {weights}, target {artifact['target']}, "
            f"engine {artifact['engine']}", proved,
            f"{machine['cpu']}, {machine['cores']} cores, {work['threads']} threads, device {work['device']}, "
            f"{machine['system']}, Python {machine['python']}, torch {machine['packages']['torch']}, glmc {report['glmc']}",
            f"`{_text(report['command'])}`, {report['date']}, {report['seconds']:.0f} s"]


def noise_text(report: dict[str, Any]) -> str:
    """The disturbances, or that none was noticed."""
    noise = report["noise"]
    return "\n".join(f"* {_text(line)}" for line in noise["said"]) or "None noticed: others had at most " + (
        f"{report['load']['foreign_cpu_share_max']:.1%} of the cores.")


def demand(report: dict[str, Any], result: dict[str, Any]) -> None:
    """Raises InternalError unless a result has all that its figures stand on."""
    lacking = [name for name, there in (
        ("baseline", result["bound"] or result["over_first"]),
        ("spread", all(found is None or "low" in found for found in result["metrics"].values())),
        ("machine", report["machine"]), ("command", report["command"])) if not there]
    if lacking:
        raise InternalError("a figure without this is not printed", field=f"{result['contender']} {result['test']}",
                            found=", ".join(lacking))


def latencies(report: dict[str, Any], results: Sequence[dict[str, Any]], first: str) -> tuple[list[str], list[list[str]]]:
    """A line a contender and latency, in milliseconds."""
    lines = []
    for metric, title in NAMES.items():
        for one in results:
            demand(report, one)
            if (found := one["metrics"][metric]) is None:
                lines.append([title, one["contender"], *["not told"] + [""] * 8])
                continue
            over = (one["over_first"] or {}).get(metric)
            lines.append([title, one["contender"], f"{found['median']:.4g}", f"{found['low']:.4g} to {found['high']:.4g}",
                          *(f"{found[name]:.4g}" for name in ("mean", "p90", "p99")),
                          f"{found['spread']:.1%}", f"{found['drift']:+.1%}",
                          f"{found['of_bound']:.1%}" if found["of_bound"] else "",
                          f"{over['ratio']:.3g} ({over['low']:.3g} to {over['high']:.3g})" if over else ""])
    return ["", "", "median ms", "interval of the median", "mean", "p90", "p99", "spread", "drift", "of the bound",
            f"times {first}'s"], lines


def rates(report: dict[str, Any], results: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Tokens a second: as llama-bench counts them, and over whole requests as vLLM does."""
    lines = []
    for one in results:
        demand(report, one)
        for part in one["llama_bench"]:
            lines.append([one["contender"], part["test"], f"{part['avg_ts']:.2f} ± {part['stddev_ts']:.2f}"])
        lines.append([one["contender"], "output throughput", f"{one['output_throughput']:.2f}"])
    return ["", "test", "tokens/s"], lines


def cold_starts(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A line a contender: each phase's median in milliseconds."""
    names = ("process", "import", "open", "weights", "place", "compile", "first_token")
    lines = []
    for one in report["contenders"]:
        if (found := one["cold_start"]) is not None:
            phases = {name: found["phases"].get(name) for name in names}
            totals = [seconds * 1e3 for seconds in found["total"]["samples"]]
            lines.append([one["name"], *(f"{p['median'] * 1e3:.1f}" if p else "" for p in phases.values()),
                          f"{found['total']['median'] * 1e3:.1f}", f"{min(totals):.1f} to {max(totals):.1f}", str(found["n"])])
    return ["ms", *(name.replace("_", " ") for name in names), "total", "least to most", "starts"], lines


def resources(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Peak memory of each contender's process, and joules where the machine tells."""
    lines = []
    for one in report["contenders"]:
        memory = one["peak_memory"]
        if memory is None:
            continue
        outside = one["kind"] in ("endpoint", "llama-bench")
        device = memory["device_bytes"]
        lines.append([one["name"], "another process's" if outside else f"{memory['host_bytes'] / 1e6:.0f} MB",
                      "" if device is None else f"{device / 1e6:.0f} MB",
                      "the machine does not tell" if one["joules"] is None else f"{one['joules']:.1f} J"])
    return ["", "peak of the process", "peak on the device", "energy of all requests"], lines


def probes(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The probes' medians, and between what they lay."""
    taken = report["probes"]
    series = {"read, GB/s": [p["read_gb_per_second"] for p in taken], "copy, GB/s": [p["copy_gb_per_second"] for p in taken],
              **{f"{dtype} product, GFLOP/s": [p["matrix_gflops"][dtype] for p in taken]
                 for dtype in (taken[0]["matrix_gflops"] if taken else ())}}
    middle = {"read, GB/s": "read_gb_per_second", "copy, GB/s": "copy_gb_per_second"}
    return ["", "median", "least", "most"], [
        [name, f"{report['probe'][middle[name]] if name in middle else report['probe']['matrix_gflops'][name.split()[0]]:g}",
         f"{min(values):g}", f"{max(values):g}"] for name, values in series.items() if values]


def profiled(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Kernels of a decode step by region, the greatest first; the table of `--profile` has every call."""
    profile = report["profile"]
    step = next((s for s in profile["steps"] if s["name"] == "decode"), None) if profile else None
    if step is None:
        return [], []
    return ["region", "kernel", "calls a step", "us a step", "share"], [
        [row["region"], row["kernel"], str(row["calls"]), f"{row['us']:.1f}", f"{row['share']:.1%}"]
        for row in step["kernels"][:_KERNELS]]


def ledger(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Fusions: promised, proved, taken, refused, and what they are worth."""
    def gain(value: float | None) -> str:
        return "" if value is None else f"{value:.3g}"

    return ["fusion", "expected", "proved", "taken", "refused", "predicted us/token", "measured us/token"], [
        [row["fusion"], *(str(row[name]) for name in ("expected", "proved", "taken")), str(len(row["refused"])),
         gain(row["predicted_us"]), gain(row["measured_us"])]
        for row in report["artifact"]["ledger"] if row["expected"] or row["proved"]]


def table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table; what comes from outside cannot break out of its cell."""
    rows = [list(heads), ["---"] * min(2, len(heads)) + ["---:"] * (len(heads) - 2), *lines]
    return "\n".join("| " + " | ".join(_text(cell) for cell in row) + " |" for row in rows)


def _text(value: Any) -> str:
    return printable(value).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
