"""A measurement as one JSON report, tied to the artefact: raw samples, what they say, the machine, the command, the noise."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import glmc
from glmc.artifact import Artifact
from glmc.bench.bound import Traffic, bound
from glmc.bench.machine import machine
from glmc.bench.measure import Measured
from glmc.bench.noise import noise
from glmc.bench.other_load import told
from glmc.bench.sample import Row, Sample
from glmc.bench.statistics import LEVEL, ratio, summarise
from glmc.bench.work import SEED, Work, digest

FORMAT = 1
METRICS: dict[str, Callable[[Row], list[float]]] = {
    "ttft": lambda row: [row.ttft],
    "tpot": lambda row: [] if row.tpot is None else [row.tpot],
    "itl": lambda row: row.itl,
    "e2el": lambda row: [row.e2el],
}
"""Latency -> its samples of one row, in seconds. itl is pooled over all gaps of all rows, as vLLM does."""
PHASES = ("process", "import", "open", "weights", "place", "compile", "first_token")


def report(artifact: Artifact, asked: Sequence[Work], measured: Measured, command: str, contenders: Sequence[Any],
           ) -> dict[str, Any]:
    """The report as JSON; docs/bench.md and glmc.bench.schema describe it."""
    manifest = artifact.manifest
    made: dict[str, Any] = {
        "glmc_bench": FORMAT, "glmc": glmc.__version__, "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command, "seconds": round(measured.seconds, 1),
        "complete": measured.interrupted is None and not measured.failed, "interrupted": measured.interrupted,
        "work": {"digest": digest(manifest["source"], asked), "source": manifest["source"], "family": manifest["family"],
                 "dtype": manifest["dtype"], "quant": manifest.get("quant"), "seed": SEED, "threads": measured.threads,
                 "device": measured.ready[contenders[0].name]["facts"]["device"], "num_iters": measured.num_iters,
                 "num_iters_warmup": measured.num_iters_warmup, "requests": [work.to_json() for work in asked]},
        "machine": machine(),
        "artifact": _artifact(artifact),
        "probes": measured.probes, "probe": middle(measured.probes),
        "load": told(measured.foreign, measured.load_before, measured.load_after),
        "contenders": [_contender(one, measured) for one in contenders],
        "results": [], "profile": measured.profile,
    }
    traffic = _traffic(measured, contenders)
    for one in contenders:
        for work, samples in measured.samples.get(one.name, {}).items():
            if samples:
                own = traffic.get(one.name) or traffic[contenders[0].name]
                made["results"].append(result(one.name, work, samples, own, made["probe"], measured.num_iters))
    _versus(made["results"], contenders[0].name)
    made["noise"] = noise(made)
    return made


def _artifact(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    proofs = artifact.json("proofs.json").get("proofs", []) if "proofs.json" in artifact.files else []
    kept = ("digest", "family", "target", "engine", "bounds", "dims", "glmc", "torch")
    return {"name": artifact.folder.name, **{key: manifest[key] for key in kept},
            "ledger": artifact.json("ledger.json")["ledger"],
            "proofs": {"sites": sum(p.get("places", 1) for p in proofs), "distinct": len(proofs),
                       "worst_kernel_error": max((p["kernel_error"] for p in proofs), default=None),
                       "worst_reference_error": max((p["reference_error"] for p in proofs), default=None)}}


def middle(probes: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The probes' medians; None of no probe."""
    if not probes:
        return None
    return {**{name: statistics.median(p[name] for p in probes) for name in ("read_gb_per_second", "copy_gb_per_second")},
            "matrix_gflops": {dtype: statistics.median(p["matrix_gflops"][dtype] for p in probes)
                              for dtype in probes[0]["matrix_gflops"]}}


def _traffic(measured: Measured, contenders: Sequence[Any]) -> dict[str, Traffic]:
    """Of those who told theirs."""
    return {one.name: Traffic(**found) for one in contenders
            if (found := measured.ready.get(one.name, {}).get("facts", {}).get("traffic"))}


def _contender(one: Any, measured: Measured) -> dict[str, Any]:
    ready, fault = measured.ready.get(one.name), measured.failed.get(one.name)
    starts = measured.starts.get(one.name)
    return {"name": one.name, "kind": one.kind, "facts": ready["facts"] if ready else None,
            "versions": ready["versions"] if ready else None,
            "failed": fault.to_json() if fault else None,
            "watching_ns_per_token": round(ready["watching_seconds"] * 1e9, 1) if ready else None,
            "peak_memory": measured.memory.get(one.name),
            "joules": None if measured.joules is None else measured.joules.get(one.name),
            "cold_start": cold_start(starts) if starts else None}


def cold_start(starts: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Each phase's median and all its samples, in seconds; "total" is of whole starts."""
    totals = [sum(one.values()) for one in starts]
    named = {name: [one[name] for one in starts] for name in PHASES if all(name in one for one in starts)}
    return {"n": len(starts), "page_cache": "warm",
            "total": {**summarise(totals).to_json(), "samples": [round(s, 6) for s in totals]},
            "phases": {name: {"median": round(statistics.median(found), 6), "samples": [round(s, 6) for s in found]}
                       for name, found in named.items()}}


def by_round(samples: Sequence[Sample], metric: str) -> list[float]:
    """A latency's median in each round, seconds; rounds without one are left out."""
    found = [[value for row in sample.rows for value in METRICS[metric](row)] for sample in samples]
    return [statistics.median(values) for values in found if values]


def result(name: str, work: Work, samples: Sequence[Sample], traffic: Traffic, probe: dict[str, Any] | None, num_iters: int,
           ) -> dict[str, Any]:
    """What one contender's samples of one kind of work say."""
    best = bound(traffic, work, probe) if probe else None
    metrics: dict[str, Any] = {}
    flat: dict[str, Any] = {}
    for metric, of in METRICS.items():
        pooled = [value * 1e3 for sample in samples for row in sample.rows for value in of(row)]
        if not pooled:
            metrics[metric] = None
            continue
        found = summarise(pooled, [value * 1e3 for value in by_round(samples, metric)])
        least = getattr(best, {"itl": "tpot"}.get(metric, metric)) * 1e3 if best else None
        metrics[metric] = {**found.to_json(), "of_bound": round(least / found.median, 4) if least else None}
        flat |= {f"{what}_{metric}_ms": metrics[metric][what] for what in ("mean", "median", "std", "p90", "p99")}
    whole = [sample.seconds for sample in samples]
    tokens = [sum(row.tokens for row in sample.rows) for sample in samples]
    read = work.input_len * work.batch_size
    return {"contender": name, "test": work.name, **work.to_json(), "rounds_kept": len(samples),
            "complete": len(samples) == num_iters, "completed": len(samples) * work.batch_size,
            "duration": round(sum(whole), 6), "total_input_tokens": read * len(samples), "total_output_tokens": sum(tokens),
            "request_throughput": round(statistics.median(work.batch_size / s for s in whole), 5),
            "output_throughput": round(statistics.median(n / s for n, s in zip(tokens, whole, strict=True)), 4),
            "total_token_throughput": round(statistics.median((n + read) / s for n, s in zip(tokens, whole, strict=True)), 4),
            **flat, "metrics": metrics, "bound": best.to_json() if best else None, "llama_bench": _llama_bench(work, samples),
            "rounds": [sample.to_json() for sample in samples]}


def _llama_bench(work: Work, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """The same samples as llama-bench has them: reading the prompts, then making tokens behind them."""
    parts = [(f"pp{work.input_len}", work.input_len * work.batch_size, 0, 0, [max(r.ttft for r in s.rows) for s in samples])]
    if work.output_len > 1:
        parts.append((f"tg{work.output_len - 1} @ d{work.input_len}", 0, (work.output_len - 1) * work.batch_size,
                      work.input_len, [s.seconds - max(r.ttft for r in s.rows) for s in samples]))
    made = []
    for test, read, generated, depth, seconds in parts:
        rates = [(read + generated) / s for s in seconds if s > 0]
        if rates:
            made.append({"test": test, "n_prompt": read, "n_gen": generated, "n_depth": depth,
                         "avg_ns": round(statistics.fmean(seconds) * 1e9), "stddev_ns": round(statistics.pstdev(seconds) * 1e9),
                         "avg_ts": round(statistics.fmean(rates), 4), "stddev_ts": round(statistics.pstdev(rates), 4),
                         "samples_ns": [round(s * 1e9) for s in seconds], "samples_ts": [round(r, 4) for r in rates]})
    return made


def _versus(results: list[dict[str, Any]], first: str) -> None:
    """Beside each other contender's result: how many times the first's latency its own is, round against round."""
    ours = {one["test"]: one for one in results if one["contender"] == first}
    for one in results:
        one["over_first"] = None
        if one["contender"] == first or one["test"] not in ours:
            continue
        pairs = [[by_round([Sample.from_json(r) for r in each["rounds"]], metric) for each in (one, ours[one["test"]])]
                 for metric in METRICS]
        one["over_first"] = {metric: ratio(theirs, own, LEVEL, paired=True).to_json()
                             for metric, (theirs, own) in zip(METRICS, pairs, strict=True) if theirs and own}
