"""A profile as Chrome's trace events, which chrome://tracing and Perfetto open: regions on one line, their calls below."""

from __future__ import annotations

from typing import Any


def trace_events(profile: dict[str, Any]) -> dict[str, Any]:
    """One process a step; times in microseconds. Calls follow each other without the gaps between them, which are not timed."""
    events: list[dict[str, Any]] = []
    for process, step in enumerate(profile["steps"], 1):
        title = f"{step['name']}: {step['tokens']} tokens behind {step['context']}, {profile['engine']}"
        events.append(_meta("process_name", process, 0, title))
        events += [_meta("thread_name", process, thread, name) for thread, name in ((1, "regions"), (2, "calls"))]
        at, opened = 0.0, None
        for number, us in step["timeline"]:
            op = step["ops"][number]
            if opened is None or opened["name"] != op["region"] or number == opened["first"]:
                opened = {"name": op["region"], "first": number, "event": _span(op["region"], "region", process, 1, at)}
                events.append(opened["event"])
            span = _span(op["op"], op["kernel"], process, 2, at)
            events.append({**span, "dur": round(us, 3), "args": {"region": op["region"]}})
            at += us
            opened["event"]["dur"] = round(at - opened["event"]["ts"], 3)
    return {"traceEvents": events, "displayTimeUnit": "ns"}


def _span(name: str, kind: str, process: int, thread: int, at: float) -> dict[str, Any]:
    return {"name": name, "cat": kind, "ph": "X", "pid": process, "tid": thread, "ts": round(at, 3), "dur": 0.0}


def _meta(name: str, process: int, thread: int, value: str) -> dict[str, Any]:
    return {"name": name, "ph": "M", "pid": process, "tid": thread, "args": {"name": value}}
