"""Decoding at batch 1: glmc beside transformers eager and AOTInductor on the unsplit graph, in tokens a second."""

from __future__ import annotations

import argparse
import functools
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
from checkpoints import GLM4_220M
from compile_once import in_fresh_process, random_model
from report import Report, default_out

from glmc.checkpoint.folder import Checkpoint
from glmc.errors import UsageError

AGAINST_EAGER, AGAINST_AOTI = 1.6, 1.0
HOW = ("bfloat16, one row; a prompt of --prompt tokens, then --steps decoding steps timed without the prompt. "
       "Contenders take turns in one process with the same threads; medians. Eager is the faster of model.generate "
       "and a loop of our own, AOTInductor the faster of plain and freezing. The bound is measured read bandwidth "
       "(mean of before and after) over the bytes one token must read: all weights but the embedding, and the filled "
       "cache")


def agreement(tokens: list[int], reference: list[int]) -> dict[str, int]:
    """How many greedy tokens agree: from the start until the first that differs, and in all."""
    same = [a == b for a, b in zip(tokens, reference, strict=True)]
    return {"leading": same.index(False) if False in same else len(same), "equal": sum(same), "of": len(same)}


def bytes_per_token(checkpoint: Path, positions: float) -> float:
    """Bytes of weights and of filled cache that decoding one token at slot `positions` must read."""
    import glmc

    plan = glmc.plan(checkpoint, target="cpu")
    return plan.roofline["bytes_per_token"] + plan.memory["kv_bytes_per_token"] * positions


def made(given: argparse.Namespace, scratch: Path) -> tuple[Path, Path]:
    """The checkpoint and the artefact, made where they were not given. Raises UsageError where they do not belong."""
    checkpoint = given.checkpoint or random_model(scratch, {**GLM4_220M, "num_hidden_layers": given.layers})
    if given.artifact is None:
        in_fresh_process(checkpoint, scratch / "model.glmc", max_len=given.slots)
        return checkpoint, scratch / "model.glmc"
    source = json.loads((given.artifact / "manifest.json").read_text())["source"]
    if source != Checkpoint.open(checkpoint).digest():
        raise UsageError("the artefact was compiled from another checkpoint", field="artifact",
                         found=given.artifact.name)
    return checkpoint, given.artifact


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--checkpoint", type=Path, help="a glm4 checkpoint to use instead of the random 220 M one")
    options.add_argument("--artifact", type=Path, help="an artefact compiled from that checkpoint")
    options.add_argument("--layers", type=int, default=GLM4_220M["num_hidden_layers"])
    options.add_argument("--prompt", type=int, default=64)
    options.add_argument("--steps", type=int, default=64)
    options.add_argument("--slots", type=int, default=512, help="max_len of the artefact, static cache of AOTInductor")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--aoti", default="plain,freezing", help="which AOTInductor variants; empty for none")
    options.add_argument("--out", type=Path, default=default_out("decode"))
    given = options.parse_args()
    report = Report("decode", given.out)
    with tempfile.TemporaryDirectory(prefix="glmc-bench-") as scratch:
        checkpoint, artifact = made(given, Path(scratch))
        details = compare(given, checkpoint, artifact)
        config = json.loads((checkpoint / "config.json").read_text())
    rates = {name: entry["median"] for name, entry in details["tokens_per_second"].items()}
    eager = max((n for n in rates if n.startswith("transformers")), key=rates.__getitem__)
    report.add("glmc", rates["glmc"], "tokens/s")
    report.add(f"eager ({eager})", rates[eager], "tokens/s")
    report.add("glmc over eager", rates["glmc"] / rates[eager], "x", AGAINST_EAGER, "higher")
    if compiled := [n for n in rates if n.startswith("aoti")]:
        aoti = max(compiled, key=rates.__getitem__)
        report.add(f"AOTInductor, unsplit ({aoti})", rates[aoti], "tokens/s")
        report.add("glmc over AOTInductor", rates["glmc"] / rates[aoti], "x", AGAINST_AOTI, "higher")
    report.add("share of the bandwidth bound", rates["glmc"] / details["bound_tokens_per_second"], "")
    for name, entry in details["agreement"].items():
        report.add(f"greedy tokens of {name} equal to {details['reference']}'s, from the start", entry["leading"],
                   f"of {entry['of']}")
    report.add("bandwidth probes agree", details["steady"], "")
    report.finish(HOW, {**details, "config": config})


def compare(given: argparse.Namespace, checkpoint: Path, artifact: Path) -> dict[str, Any]:
    """Run the contenders in turn; the details of the report."""
    import torch
    from decode_contenders import Glmc, TransformersGenerate, TransformersLoop, WholeAoti, published_model

    model = published_model(checkpoint)
    vocabulary = model.config.vocab_size
    prompt = torch.randint(1, vocabulary, (given.prompt,), generator=torch.Generator().manual_seed(1)).tolist()
    contenders: dict[str, Any] = {
        "glmc": Glmc(artifact, prompt, given.steps),
        "transformers generate": TransformersGenerate(model, prompt, given.steps),
        "transformers loop": TransformersLoop(model, prompt, given.steps)}
    for variant in filter(None, given.aoti.split(",")):
        contenders[f"aoti {variant}"] = WholeAoti(model, prompt, given.steps, given.slots, variant == "freezing")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    before = measure.read_bandwidth()
    threads = len(os.sched_getaffinity(0))

    def rate(name: str) -> float:
        torch.set_num_threads(1 if name == "glmc" else threads)  # glmc has threads of its own
        time.sleep(0.2)  # those of the contender before wait by spinning for a while
        return contenders[name].rate()

    torch.set_num_threads(threads)
    samples = measure.interleave({name: functools.partial(rate, name) for name in contenders}, given.rounds)
    torch.set_num_threads(threads)
    after = measure.read_bandwidth()
    bandwidth = (before["gb_per_second"] + after["gb_per_second"]) / 2
    nbytes = bytes_per_token(checkpoint, given.prompt + given.steps / 2)
    reference = "transformers loop"
    return {
        "tokens_per_second": {name: measure.summary(values, 2) for name, values in samples.items()},
        "bandwidth": {"before": before, "after": after}, "matrix_gflops": measure.matrix_rate(),
        "steady": measure.steady(before["gb_per_second"], after["gb_per_second"]),
        "bytes_per_token": int(nbytes), "bound_tokens_per_second": round(bandwidth * 1e9 / nbytes, 2),
        "reference": reference, "agreement": {n: agreement(c.tokens, contenders[reference].tokens)
                                              for n, c in contenders.items() if n != reference},
        "aoti_compile_seconds": {n: round(c.compile_seconds, 1) for n, c in contenders.items() if n.startswith("aoti")},
        "threads": threads, "prompt": given.prompt, "steps": given.steps, "slots": given.slots}


if __name__ == "__main__":
    main()
