"""What a report is made of, as a JSON schema, and a report's check against it. docs/bench.md says what each field means."""

from __future__ import annotations

from typing import Any

from glmc.errors import ReportError

_KINDS: dict[str, tuple[type, ...]] = {"object": (dict,), "array": (list,), "string": (str,), "boolean": (bool,),
                                       "integer": (int,), "number": (int, float), "null": (type(None),)}


def _object(needed: dict[str, Any], **loose: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {**needed, **loose}, "required": sorted(needed)}


def _list(of: Any) -> dict[str, Any]:
    return {"type": "array", "items": of}


def _maybe(one: dict[str, Any]) -> dict[str, Any]:
    kind = one["type"]
    return {**one, "type": [*([kind] if isinstance(kind, str) else kind), "null"]}


def _map(of: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": of}


NUMBER, WHOLE, TEXT, FLAG, ANY = ({"type": kind} for kind in ("number", "integer", "string", "boolean", "object"))
REQUEST = {"input_len": WHOLE, "output_len": WHOLE, "batch_size": WHOLE}
OF = ("mean", "median", "std", "p90", "p99")
SUMMARY = _object({"n": WHOLE, **dict.fromkeys((*OF, "low", "high", "level", "spread", "drift"), NUMBER),
                   "of_bound": _maybe(NUMBER)})
RATIO = _object(dict.fromkeys(("ratio", "low", "high", "level"), NUMBER))
PROBE = _object({"read_gb_per_second": NUMBER, "copy_gb_per_second": NUMBER, "matrix_gflops": _map(NUMBER)})
ROW = _object({"events": _list(NUMBER), "tokens": WHOLE, "streamed": FLAG})
LATENCIES = ("ttft", "tpot", "itl", "e2el")
FAULT = _object({"code": TEXT, "exit": WHOLE, "what": TEXT,
                 **dict.fromkeys(("file", "field", "expected", "found", "hint"), _maybe(TEXT))})
RESULT = _object({
    "contender": TEXT, "test": TEXT, **REQUEST, "rounds_kept": WHOLE, "complete": FLAG, "completed": WHOLE, "duration": NUMBER,
    "total_input_tokens": WHOLE, "total_output_tokens": WHOLE, "request_throughput": NUMBER, "output_throughput": NUMBER,
    "total_token_throughput": NUMBER, "metrics": _object(dict.fromkeys(LATENCIES, _maybe(SUMMARY))),
    "bound": _maybe(_object({"ttft_ms": NUMBER, "tpot_ms": NUMBER, "e2el_ms": NUMBER, "by": _map(TEXT)})),
    "over_first": _maybe(_map(RATIO)), "rounds": _list(_list(ROW)),
    "llama_bench": _list(_object({
        "test": TEXT, "n_prompt": WHOLE, "n_gen": WHOLE, "n_depth": WHOLE, "avg_ns": WHOLE, "stddev_ns": WHOLE,
        "avg_ts": NUMBER, "stddev_ts": NUMBER, "samples_ns": _list(WHOLE), "samples_ts": _list(NUMBER)})),
}, **{f"{what}_{metric}_ms": NUMBER for metric in LATENCIES for what in OF})
COLD_START = _object({"n": WHOLE, "page_cache": TEXT,
                      "total": _object({"n": WHOLE, "median": NUMBER, "samples": _list(NUMBER)}),
                      "phases": _map(_object({"median": NUMBER, "samples": _list(NUMBER)}))})
CONTENDER = _object({
    "name": TEXT, "kind": TEXT, "facts": _maybe(ANY), "versions": _maybe(_map(TEXT)), "failed": _maybe(FAULT),
    "watching_ns_per_token": _maybe(NUMBER), "joules": _maybe(NUMBER), "cold_start": _maybe(COLD_START),
    "peak_memory": _maybe(_object({"host_bytes": _maybe(WHOLE), "device_bytes": _maybe(WHOLE)}))})
LEDGER_ROW = _object({"fusion": TEXT, "expected": WHOLE, "proved": WHOLE, "taken": WHOLE, "refused": _list(ANY),
                      "predicted_us": _maybe(NUMBER), "measured_us": _maybe(NUMBER)})
ARTIFACT = _object({
    "name": TEXT, "digest": TEXT, "family": TEXT, "target": TEXT, "engine": TEXT, "bounds": _map(WHOLE), "dims": ANY,
    "glmc": TEXT, "torch": TEXT, "ledger": _list(LEDGER_ROW),
    "proofs": _object({"sites": WHOLE, "distinct": WHOLE, "worst_kernel_error": _maybe(NUMBER),
                       "worst_reference_error": _maybe(NUMBER)})})
_SHARE = {"calls": WHOLE, "us": NUMBER, "share": NUMBER}
PROFILE = _object({"engine": TEXT, "steps": _list(_object({
    "name": TEXT, "tokens": WHOLE, "context": WHOLE, "samples": WHOLE, "us": NUMBER, "inside_us": NUMBER,
    "regions": _list(_object({"region": TEXT, **_SHARE})),
    "kernels": _list(_object({"region": TEXT, "kernel": TEXT, **_SHARE})),
    "ops": _list(_object({"region": TEXT, "op": TEXT, "kernel": TEXT, **_SHARE})), "timeline": _list(_list(NUMBER))}))})
REPORT = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A report of glmc bench", **_object({
    "glmc_bench": {"type": "integer", "enum": [1]}, "glmc": TEXT, "date": TEXT, "command": TEXT, "seconds": NUMBER,
    "complete": FLAG, "interrupted": _maybe(TEXT),
    "work": _object({"digest": TEXT, "source": TEXT, "family": TEXT, "dtype": TEXT, "quant": _maybe(TEXT), "seed": WHOLE,
                     "threads": WHOLE, "device": TEXT, "num_iters": WHOLE, "num_iters_warmup": WHOLE,
                     "requests": _list(_object(REQUEST))}),
    "machine": _object({"cpu": TEXT, "cpu_flags": _list(TEXT), "arch": TEXT, "cores": WHOLE, "memory_bytes": WHOLE,
                        "system": TEXT, "python": TEXT, "packages": _map(_maybe(TEXT)), "environment": _map(TEXT)}),
    "artifact": ARTIFACT, "probes": _list(PROBE), "probe": _maybe(PROBE),
    "load": _object({"load_average_before": _list(NUMBER), "load_average_after": _list(NUMBER),
                     "foreign_cpu_share": _list(_maybe(NUMBER)), "foreign_cpu_share_median": _maybe(NUMBER),
                     "foreign_cpu_share_max": _maybe(NUMBER), "quiet": _maybe(FLAG)}),
    "noise": _object({"quiet": _maybe(FLAG), "said": _list(TEXT)}),
    "contenders": _list(CONTENDER), "results": _list(RESULT), "profile": _maybe(PROFILE)})}
"""Fields beyond those are allowed: a later version may add some, and `glmc_bench` counts up where one changes its meaning."""


def check(value: Any, schema: dict[str, Any], file: Any, path: str = "") -> None:
    """Raises ReportError that names the first field which is not as the schema has it."""
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    known = tuple(kind for name in kinds for kind in _KINDS[name])
    if not isinstance(value, known) or (isinstance(value, bool) and bool not in known):
        raise ReportError("a field of the report has another type", file=file, field=path or "the whole",
                          expected=" or ".join(kinds), found=type(value).__name__)
    if value not in schema.get("enum", (value,)):
        raise ReportError("the report has another format", file=file, field=path, expected=schema["enum"], found=value)
    if isinstance(value, dict):
        if lacking := [name for name in schema.get("required", ()) if name not in value]:
            raise ReportError("the report lacks a field", file=file, field=f"{path}.{lacking[0]}".lstrip("."))
        for name, part in value.items():
            wanted = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
            if wanted:
                check(part, wanted, file, f"{path}.{name}".lstrip("."))
    elif isinstance(value, list) and "items" in schema:
        for number, part in enumerate(value):
            check(part, schema["items"], file, f"{path}[{number}]")
