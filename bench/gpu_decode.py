"""A dense model at its published size on a GPU: decoding beside transformers eager and compiled, and opening the artefact."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import fresh_process
import gpu_clock
import measure
import torch
from checkpoints import write
from report import ROOT, Report, default_out

import glmc

SHARE, AHEAD, BEYOND = 0.8, 1.0, 2.0
HOW = ("random weights at the published shape, bfloat16; a prompt in every row, then --steps decoding steps timed without it, "
       "sampling included; medians over --rounds rounds in turn, in one process. The bound is the bytes of the weights but the "
       "embedding, and of the filled cache, over the fastest copy measured in the same run. compiled: torch.compile of the "
       "published model, mode reduce-overhead, static cache. Opening: a fresh process, files in the page cache, an empty cache "
       "of Triton's; reading the weights is the phase that reads, checks and moves them")


def child(artifact: Path) -> None:
    """Opens an artefact and makes one token; prints the seconds of each phase, from before torch is imported."""
    import glmc.runtime.session as session

    began = time.perf_counter()
    model = session.load(artifact)
    loaded = time.perf_counter()
    answer = model.generate([(37 * i + 11) % 1000 for i in range(32)], max_new_tokens=1)
    ended = time.perf_counter()
    model.generate([(37 * i + 11) % 1000 for i in range(32)], max_new_tokens=4)
    decoded = time.perf_counter()
    print(json.dumps({"load": loaded - began, **model.timings, "first_token": ended - loaded, "next_four": decoded - ended,
                      "token": answer.token_ids}))


def opening(artifact: Path) -> dict[str, Any]:
    """What `child` found in a fresh process, and the files that a compiler left in what was an empty cache."""
    with tempfile.TemporaryDirectory(prefix="glmc-triton-") as cache:
        done = fresh_process.run(fresh_process.python(__file__, "--child", artifact), {"TRITON_CACHE_DIR": cache})
        made = sorted(p.name for p in Path(cache).rglob("*") if p.is_file())
    return {**done.json(), "process": done.seconds, "compiled": made}


def bound(artifact: Path, copy: float, slots: float, rows: int) -> tuple[float, int]:
    """Tokens a second that the memory allows, and the bytes of a step."""
    plan = glmc.plan(artifact / "config.json", target="cuda:sm_90")
    step = plan.roofline["bytes_per_token"] + rows * plan.memory["kv_bytes_per_token"] * slots
    return rows * copy / step, int(step)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--config", type=Path, default=ROOT / "bench" / "configs" / "glm-4-9b-chat-hf.json")
    options.add_argument("--layers", type=int)
    options.add_argument("--rows", default="1,8")
    options.add_argument("--prompt", type=int, default=128)
    options.add_argument("--steps", type=int, default=128)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--peers", default="eager,compiled")
    options.add_argument("--scratch", type=Path, help="where checkpoint and artefact are made, or are already")
    options.add_argument("--prepare", action="store_true", help="only make the checkpoint and the artefact")
    options.add_argument("--out", type=Path, default=default_out("gpu/decode"))
    options.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.child:
        return child(given.child)
    report = Report("gpu_decode", given.out)
    with tempfile.TemporaryDirectory(prefix="glmc-bench-") as made:
        compare(report, given, given.scratch or Path(made))


def compare(report: Report, given: argparse.Namespace, scratch: Path) -> None:
    config = json.loads(given.config.read_text()) | ({"num_hidden_layers": given.layers} if given.layers else {})
    config["eos_token_id"] = None
    rows, slots = list(map(int, given.rows.split(","))), 1 << (given.prompt + given.steps).bit_length()
    checkpoint, artifact = scratch / "checkpoint", scratch / "model.glmc"
    seconds: dict[str, Any] = {}
    if not checkpoint.exists():
        began = time.perf_counter()
        write(checkpoint, config, device="cuda")
        seconds["checkpoint"] = round(time.perf_counter() - began, 1)
    torch.cuda.empty_cache()
    if not artifact.exists():
        began, laps = time.perf_counter(), {}

        def progress(stage: str, done: int, of: int) -> None:
            laps[stage] = round(time.perf_counter() - began, 1)

        major, minor = torch.cuda.get_device_capability()
        glmc.compile(checkpoint, artifact, target=f"cuda:sm_{major}{minor}", max_len=slots, max_batch=max(rows),
                     weights="link", progress=progress)
        seconds |= {"compile": round(time.perf_counter() - began, 1), "stages end at": laps}
    print(json.dumps(seconds), flush=True)
    if given.prepare:
        return
    copy = max(gpu_clock.copy_bandwidth().values())
    report.add("copy", copy / 1e9, "GB/s")
    torch.cuda.empty_cache()
    phases = [opening(artifact) for _ in range(2)]
    print(json.dumps(phases), flush=True)
    last = phases[-1]
    report.add("load and first token beyond reading the weights", last["load"] + last["first_token"] - last["weights_and_code"],
               "s", BEYOND)
    report.add("files that a compiler made while loading and decoding", len(last["compiled"]), "", 0, "equal")
    details: dict[str, Any] = {"device": gpu_clock.device(), "config": config, "seconds": seconds, "opening": phases,
                               "decode": {}}
    from gpu_contenders import Compiled, Eager, Glmc, published_model

    model = glmc.load(artifact)
    prompt = torch.randint(1, config["vocab_size"], (given.prompt,), generator=torch.Generator().manual_seed(1)).tolist()
    ours = {count: Glmc(model, prompt, count, given.steps) for count in rows}
    for count in rows:
        samples = measure.interleave({"glmc": ours[count].rate}, given.rounds, warm=2)["glmc"]
        most, step = bound(artifact, copy, given.prompt + given.steps / 2, count)
        report.add(f"decode, {count} rows", statistics.median(samples), "tokens/s")
        report.add(f"decode, {count} rows, share of the bound", statistics.median(samples) / most, "", SHARE, "higher")
        details["decode"][str(count)] = {"glmc": measure.summary(samples, 2), "bound": most, "bytes_a_step": step, "peers": {}}
        report.finish(HOW, details)  # what takes a minute to compile comes later; what is known is not lost to it
    peers = list(filter(None, given.peers.split(",")))
    published = published_model(checkpoint) if peers else None
    for name in peers:
        for count in rows:
            torch._dynamo.reset()
            other = (Eager(published, prompt, count, given.steps) if name == "eager" else
                     Compiled(published, prompt, count, given.steps, slots))
            samples = measure.interleave({"glmc": ours[count].rate, name: other.rate}, given.rounds, warm=2)
            times = statistics.median(samples["glmc"]) / statistics.median(samples[name])
            report.add(f"decode, {count} rows, over {name}", times, "x", AHEAD, "higher")
            same = sum(a == b for a, b in zip(other.tokens, ours[count].tokens, strict=True))
            details["decode"][str(count)]["peers"][name] = {
                **{who: measure.summary(found, 2) for who, found in samples.items()}, "tokens_equal_to_glmc": same}
            report.finish(HOW, details)


if __name__ == "__main__":
    main()
