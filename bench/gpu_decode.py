"""A model at its published size on a GPU: decoding beside transformers eager and compiled, and opening the artefact."""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import fresh_process
import gpu_bound
import gpu_clock
import measure
import torch
from checkpoints import write
from pour import KINDS, pour
from report import ROOT, Report, default_out

import glmc

SHARE, AHEAD, BEYOND = 0.8, 1.0, 2.0
HOW = ("random weights at the published shape, bfloat16, routed experts in --kind; a prompt of its own in every row, then "
       "--steps decoding steps timed without it, sampling included; medians over --rounds rounds in turn, in one process. The "
       "bound is the bytes of a step over the fastest copy measured in the same run: weights but the embedding, of the routed "
       "experts those that so many rows are expected to choose where all are alike likely, and the filled cache. compiled: "
       "torch.compile of the published model, mode reduce-overhead, static cache. Where experts are coded the peers have other "
       "random weights, in bfloat16. Opening: a fresh process, files in the page cache, an empty cache of Triton's; reading "
       "the weights is the phase that reads, checks and moves them")


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


def layers_of(given: argparse.Namespace, config: dict[str, Any], scratch: Path, slots: int, rows: int) -> int:
    """How many layers there will be: as many as were asked for, or as fit where checkpoint and artefact go and on the GPU."""
    if given.layers != "fit":
        return int(given.layers or config["num_hidden_layers"])
    scratch.mkdir(parents=True, exist_ok=True)
    return gpu_bound.fitting(config, given.kind, 0.95 * shutil.disk_usage(scratch).free, torch.cuda.mem_get_info()[0],
                             slots * rows)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--config", type=Path, default=ROOT / "bench" / "configs" / "glm-4-9b-chat-hf.json")
    options.add_argument("--kind", choices=KINDS, default="bfloat16", help="what the routed experts are kept in")
    options.add_argument("--layers", help='how many; "fit": as many as fit scratch and GPU; all unless said')
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


def prepare(given: argparse.Namespace, scratch: Path, slots: int, rows: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration, and the seconds that checkpoint and artefact took where they were not there."""
    checkpoint, artifact = scratch / "checkpoint", scratch / "model.glmc"
    seconds: dict[str, Any] = {}
    if not checkpoint.exists():
        config = json.loads(given.config.read_text())
        config |= {"num_hidden_layers": layers_of(given, config, scratch, slots, rows), "eos_token_id": None}
        began = time.perf_counter()
        pour(checkpoint, config, given.kind) if config.get("n_routed_experts") else write(checkpoint, config, device="cuda")
        seconds["checkpoint"] = round(time.perf_counter() - began, 1)
    torch.cuda.empty_cache()
    if not artifact.exists():
        began, laps = time.perf_counter(), {}

        def progress(stage: str, done: int, of: int) -> None:
            laps[stage] = round(time.perf_counter() - began, 1)

        major, minor = torch.cuda.get_device_capability()
        glmc.compile(checkpoint, artifact, target=f"cuda:sm_{major}{minor}", max_len=slots, max_batch=rows, weights="link",
                     progress=progress)
        seconds |= {"compile": round(time.perf_counter() - began, 1), "stages end at": laps}
    print(json.dumps(seconds), flush=True)
    return json.loads((checkpoint / "config.json").read_text()), seconds


def compare(report: Report, given: argparse.Namespace, scratch: Path) -> None:
    rows, slots = list(map(int, given.rows.split(","))), 1 << (given.prompt + given.steps).bit_length()
    config, seconds = prepare(given, scratch, slots, max(rows))
    if given.prepare:
        return
    artifact = scratch / "model.glmc"
    copy = max(gpu_clock.copy_bandwidth().values())
    report.add("copy", copy / 1e9, "GB/s")
    torch.cuda.empty_cache()
    phases = [opening(artifact) for _ in range(2)]
    print(json.dumps(phases), flush=True)
    last = phases[-1]
    report.add("load and first token beyond reading the weights", last["load"] + last["first_token"] - last["weights_and_code"],
               "s", BEYOND)
    report.add("files that a compiler made while loading and decoding", len(last["compiled"]), "", 0, "equal")
    report.add("layers", config["num_hidden_layers"], f"of {json.loads(given.config.read_text())['num_hidden_layers']}")
    details: dict[str, Any] = {"device": gpu_clock.device(), "config": config, "kind": given.kind, "seconds": seconds,
                               "opening": phases, "decode": {}}
    from gpu_contenders import Glmc

    model = glmc.load(artifact)
    draw = torch.Generator().manual_seed(1)
    prompts = torch.randint(1, config["vocab_size"], (max(rows), given.prompt), generator=draw).tolist()
    ours = {count: Glmc(model, prompts[:count], given.steps) for count in rows}
    for count in rows:
        samples = measure.interleave({"glmc": ours[count].rate}, given.rounds, warm=2)["glmc"]
        step = gpu_bound.step(config, count, given.prompt + given.steps / 2, given.kind)
        most = count * copy / step
        report.add(f"decode, {count} rows", statistics.median(samples), "tokens/s")
        report.add(f"decode, {count} rows, share of the bound", statistics.median(samples) / most, "", SHARE, "higher")
        details["decode"][str(count)] = {"glmc": measure.summary(samples, 2), "bound": most, "bytes_a_step": int(step),
                                         "peers": {}}
        report.write(HOW, details)  # what takes a minute to compile comes later; what is known is not lost to it
    if given.peers:
        beside(report, given, scratch / "checkpoint", config, slots, ours, details)


def beside(report: Report, given: argparse.Namespace, checkpoint: Path, config: dict[str, Any], slots: int,
           ours: dict[int, Any], details: dict[str, Any]) -> None:
    """The peers, in turn with ours; one that cannot run has its reason in the details."""
    from gpu_contenders import Compiled, Eager, published_model, random_model

    alike = given.kind == "bfloat16"
    published = published_model(checkpoint) if alike else random_model(config)
    for name in given.peers.split(","):
        for count, own in ours.items():
            torch._dynamo.reset()
            told = details["decode"][str(count)]["peers"]
            try:
                other = Eager(published, own.prompts, given.steps) if name == "eager" else Compiled(published, own.prompts,
                                                                                                   given.steps, slots)
                samples = measure.interleave({"glmc": own.rate, name: other.rate}, given.rounds, warm=2)
            except Exception as fault:
                told[name] = {"failed": f"{type(fault).__name__}: {fault}"[:500]}
                print(f"{name}, {count} rows: {told[name]['failed']}", flush=True)
                report.finish(HOW, details)
                continue
            times = statistics.median(samples["glmc"]) / statistics.median(samples[name])
            report.add(f"decode, {count} rows, over {name}{'' if alike else ' in bfloat16'}", times, "x", AHEAD, "higher")
            told[name] = {**{who: measure.summary(found, 2) for who, found in samples.items()}}
            if alike:
                told[name]["tokens_equal_to_glmc"] = sum(a == b for a, b in zip(other.tokens, own.tokens, strict=True))
            report.finish(HOW, details)


if __name__ == "__main__":
    main()
