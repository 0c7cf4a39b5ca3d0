"""Target mlir:llvm-cpu: decoding and prefill beside our own CPU engine and transformers eager, and what depth costs.

    python bench/mlir.py [--threads 1] [--rounds 7] [--what speed depth]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from checkpoints import GLM4_220M
from compile_depth import width
from compile_once import in_fresh_process, random_model
from measure import interleave, summary
from report import Report, default_out

AGAINST_EAGER, DEPTH, SIZE = 1.0, 1.5, 3.0
HOW = ("speed: the random 220 M glm4 in float32, one row, contenders by turns in one process with the same threads; prefill is "
       "one prompt to the logits of its last token, decoding --steps tokens one by one behind a prompt of 128; ratios are of "
       "medians. depth: glm4 of one width with random weights, each compilation in a fresh process with nothing kept, by "
       "turns; size is that of all files but weights and the checkpoint's own")
_OWN = ("tokenizer.json", "config.json", "generation_config.json", "chat_template.jinja")


def code_bytes(artifact: Path) -> int:
    """Bytes of an artefact without its weights and what is copied from the checkpoint."""
    return sum(f.stat().st_size for f in artifact.rglob("*")
               if f.is_file() and f.suffix != ".safetensors" and f.name not in _OWN)


def speed(given: argparse.Namespace, scratch: Path, report: Report) -> dict[str, Any]:
    """Our two CPU engines and eager, decoding and prompts of --prompts tokens."""
    checkpoint = given.checkpoint or random_model(scratch / "speed", GLM4_220M)
    import torch
    from transformers import AutoModelForCausalLM

    import glmc

    torch.set_num_threads(given.threads)
    sessions = {}
    for name, target in (("iree", "mlir:llvm-cpu"), ("native", "cpu")):
        out = scratch / f"{name}.glmc"
        glmc.compile(checkpoint, out, target=target, dtype="float32", max_len=given.slots)
        sessions[name] = glmc.load(out, threads=given.threads)
    torch.set_num_threads(given.threads)
    eager = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    draw = torch.Generator().manual_seed(3)
    found: dict[str, Any] = {}

    def timed(call: Any) -> float:
        torch.set_num_threads(given.threads)  # a native session takes torch's own down to one
        began = time.perf_counter()
        with torch.no_grad():
            call()
        return (time.perf_counter() - began) * 1e3

    for tokens in given.prompts:
        ids = torch.randint(2, 32000, (1, tokens), generator=draw)
        contenders = {name: lambda s=s, ids=ids: timed(lambda: s.extend(0, ids[0].tolist(), 0)) for name, s in sessions.items()}
        contenders["eager"] = lambda ids=ids: timed(lambda: eager(ids, use_cache=True, logits_to_keep=1))
        found[f"prefill {tokens}"] = interleave(contenders, given.rounds)
    ids = torch.randint(2, 32000, (1, 128), generator=draw)

    def decoded(session: Any) -> float:
        session.extend(0, ids[0].tolist(), 0)
        token, at = torch.tensor([[5]]), torch.arange(128, 128 + given.steps)
        return timed(lambda: [session.advance(token, place.view(1, 1)) for place in at]) / given.steps

    def published() -> float:
        with torch.no_grad():
            cache = eager(ids, use_cache=True, logits_to_keep=1).past_key_values
        return timed(lambda: [eager(torch.tensor([[5]]), past_key_values=cache, use_cache=True)
                              for _ in range(given.steps)]) / given.steps

    found["decoding"] = interleave({**{name: lambda s=s: decoded(s) for name, s in sessions.items()}, "eager": published},
                                   given.rounds)
    for what, samples in found.items():
        middle = {name: statistics.median(values) for name, values in samples.items()}
        report.add(f"{what}: eager over iree", middle["eager"] / middle["iree"], "x", AGAINST_EAGER, "higher")
        report.add(f"{what}: our native engine over iree", middle["native"] / middle["iree"], "x")
        for name, value in middle.items():
            report.add(f"{what}, {name}", value, "ms")
    return {what: {name: summary(values) for name, values in samples.items()} for what, samples in found.items()}


def depth(given: argparse.Namespace, scratch: Path, report: Report) -> dict[str, Any]:
    """Seconds and bytes at --layers layers."""
    few, middle, many = given.layers
    folders = {layers: scratch / f"layers-{layers}" for layers in given.layers}
    for layers, folder in folders.items():
        random_model(folder, {**width(given.hidden), "num_hidden_layers": layers})
    runs: dict[int, list[dict[str, Any]]] = {layers: [] for layers in given.layers}

    def compiled(layers: int) -> float:
        out = folders[layers] / f"{len(runs[layers])}.glmc"
        made, _ = in_fresh_process(folders[layers] / "checkpoint", out, "mlir:llvm-cpu", cached=False)
        runs[layers].append(made)
        return made["seconds"]

    interleave({str(n): lambda n=n: compiled(n) for n in (few, middle)}, given.compilations, warm=0)
    compiled(many)
    seconds = {n: statistics.median(run["seconds"] for run in runs[n]) for n in runs}
    sizes = {n: code_bytes(folders[n] / "0.glmc") for n in runs}
    report.add(f"whole compilation, {middle} layers over {few}", seconds[middle] / seconds[few], "x", DEPTH)
    report.add(f"code part, {many} layers over {few}", sizes[many] / sizes[few], "x", SIZE)
    for n in runs:
        report.add(f"whole compilation, {n} layers", seconds[n], "s")
        report.add(f"code part, {n} layers", sizes[n], "bytes")
    return {"hidden": given.hidden, "stages": {n: run[-1]["stages"] for n, run in runs.items()},
            "seconds": {n: summary([one["seconds"] for one in run], 2) for n, run in runs.items()}}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--what", nargs="+", choices=["speed", "depth"], default=["speed", "depth"])
    options.add_argument("--checkpoint", type=Path, help="a glm4 checkpoint to use instead of the random 220 M one")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--steps", type=int, default=8)
    options.add_argument("--slots", type=int, default=640)
    options.add_argument("--prompts", type=int, nargs="+", default=[128, 512])
    options.add_argument("--layers", type=int, nargs=3, default=[4, 24, 92], metavar=("FEW", "MIDDLE", "MANY"))
    options.add_argument("--hidden", type=int, default=128, help="a multiple of 64")
    options.add_argument("--compilations", type=int, default=2)
    options.add_argument("--out", type=Path, default=default_out("mlir"))
    given = options.parse_args()
    report = Report("mlir", given.out)
    with tempfile.TemporaryDirectory(prefix="glmc-bench-") as scratch:
        details = {what: {"speed": speed, "depth": depth}[what](given, Path(scratch), report) for what in given.what}
    report.finish(HOW, {**details, "threads": given.threads, "steps": given.steps, "slots": given.slots})


if __name__ == "__main__":
    main()
