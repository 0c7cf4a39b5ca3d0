"""A contender's process: it opens what it is told, says so, and answers requests, one JSON object a line.

    python -m glmc.bench.worker '{"kind": "artifact", "path": ...}'

It says {"ready": ...} once; then each line of stdin, {"prompts", "output_len"}, {"probe"} or {"profile"}, is answered by one.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import gc  # noqa: E402  # the clock first: what is imported from here on is part of what is measured
import importlib.metadata  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import resource  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from glmc.bench.sample import watching_seconds  # noqa: E402
from glmc.bench.work import Work  # noqa: E402
from glmc.errors import GlmcError, InternalError, UsageError  # noqa: E402


def opened(kind: str, told: dict[str, Any]) -> Any:
    """The contender of a kind: it has `phases`, `facts`, `vocabulary`, `device`, `compiles` and `request`."""
    if kind == "artifact":
        from glmc.bench.ours import Ours
        return Ours(told["path"], told["threads"], told["device"])
    if kind in ("eager", "inductor"):
        from glmc.bench.published import Published
        return Published(told["checkpoint"], told["threads"], told["device"], told["dtype"], kind == "inductor")
    if kind == "aoti":
        from glmc.bench.ahead_of_time import ahead_of_time
        return ahead_of_time(told)
    if kind == "endpoint":
        from glmc.bench.endpoint import Endpoint
        return Endpoint(told["url"], told["model"])
    if kind == "llama-bench":
        from glmc.bench.llama_bench import LlamaBench
        return LlamaBench(told["program"], told["model"], told["threads"])
    if kind == "probe":
        from glmc.bench.probing import Probing
        return Probing(told["threads"], told["device"])
    raise UsageError("no contender is of this kind", field="kind", found=kind)


def peak_memory(device: str | None) -> dict[str, int | None]:
    """The most bytes that this process has held so far: of main memory, and on its device."""
    status = Path("/proc/self/status")
    if status.is_file():  # which counts from the program's start, and not from its parent's size
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        host = int(fields["VmHWM"].split()[0]) * 1024
    else:
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    held: dict[str, int | None] = {"host_bytes": host, "device_bytes": None}
    if device is not None and device.partition(":")[0] == "cuda":
        import torch

        held["device_bytes"] = torch.cuda.max_memory_allocated(device)
    return held


def answer(contender: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """What one line of stdin is answered with."""
    if "probe" in asked:
        return {"probe": contender.probe()}
    if "profile" in asked:
        return {"profile": contender.profile(Work(**asked["profile"]))}
    gc.collect()
    sample = contender.request(asked["prompts"], asked["output_len"])
    return {"rows": sample.to_json(), "memory": peak_memory(contender.device), "facts": contender.facts}


def main() -> None:
    # What the contender prints goes to stderr: stdout is the driver's.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(value: dict[str, Any]) -> None:
        out.write(json.dumps(value, allow_nan=False) + "\n")
        out.flush()

    def guarded(call: Any) -> None:
        """Say what `call` gives, or the fault that ended it."""
        try:
            say(call())
        except GlmcError as fault:
            say({"error": fault.to_json()})
        except Exception as fault:  # somebody else's code, or ours: the driver tells it under the contender's name
            say({"error": InternalError(f"{type(fault).__name__}: {fault}").to_json()})

    told = json.loads(sys.argv[1])
    made: list[Any] = []

    def begin() -> dict[str, Any]:
        contender = opened(told["kind"], told)
        made.append(contender)
        phases = {"started": STARTED, **contender.phases}
        return {"ready": {"phases": phases, "facts": contender.facts, "vocabulary": contender.vocabulary,
                          "compiles": contender.compiles, "watching_seconds": watching_seconds(),
                          "memory": peak_memory(contender.device), "pid": os.getpid(),
                          "versions": {"torch": importlib.metadata.version("torch")} if "torch" in sys.modules else {}}}

    guarded(begin)
    for line in sys.stdin if made else ():
        guarded(lambda line=line: answer(made[0], json.loads(line)))


if __name__ == "__main__":
    main()
