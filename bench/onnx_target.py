"""Target `onnx`: decoding and prompts beside our native engine and transformers eager, and what depth costs."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
from checkpoints import GLM4_220M
from compile_depth import width
from compile_once import in_fresh_process, random_model
from report import Report, default_out

EAGER, SIZE, TIME = 1.0, 3.0, 1.5
HOW = ("float32, one row, the same threads: a prompt of --prompt tokens, then --steps greedy tokens timed without it; "
       "contenders take turns in one process, medians. Size: model.onnx of a dense model of 92 layers over one of 4, its "
       "functions (the code) and the whole file, which also binds every weight by name, file and place. Time: whole "
       "compilations in fresh processes")


class Ours:
    """An artefact: tokens a second of a prompt, and of decoding after it."""

    def __init__(self, artifact: Path, prompt: list[int], steps: int, threads: int) -> None:
        import glmc

        self.model, self.prompt, self.steps = glmc.load(artifact, threads=threads), prompt, steps

    def rates(self) -> tuple[float, float]:
        import torch

        torch.set_num_threads(1)  # both engines have threads of their own
        begun = time.perf_counter()
        logits = self.model.extend(0, self.prompt, 0)
        prefilled = time.perf_counter()
        for at in range(self.steps):
            token = logits[:, -1].argmax(-1, keepdim=True)
            logits = self.model.advance(token, torch.tensor([[len(self.prompt) + at]]))
        return len(self.prompt) / (prefilled - begun), self.steps / (time.perf_counter() - prefilled)


class Eager:
    """transformers' own model, with its dynamic cache."""

    def __init__(self, checkpoint: Path, prompt: list[int], steps: int, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.prompt, self.steps, self.threads = prompt, steps, threads

    def rates(self) -> tuple[float, float]:
        import torch

        torch.set_num_threads(self.threads)
        with torch.no_grad():
            begun = time.perf_counter()
            made = self.model(torch.tensor([self.prompt]), use_cache=True, logits_to_keep=1)
            prefilled = time.perf_counter()
            for _ in range(self.steps):
                token = made.logits[:, -1].argmax(-1, keepdim=True)
                made = self.model(token, past_key_values=made.past_key_values, use_cache=True)
        return len(self.prompt) / (prefilled - begun), self.steps / (time.perf_counter() - prefilled)


def speed(given: argparse.Namespace, scratch: Path, report: Report) -> dict[str, Any]:
    """Both rates of each contender, for each number of threads."""
    import torch

    checkpoint = random_model(scratch / "speed", {**GLM4_220M, "num_hidden_layers": given.layers})
    artifacts = {target: scratch / f"{target}.glmc" for target in ("onnx", "cpu")}
    for target, out in artifacts.items():
        in_fresh_process(checkpoint, out, target, dtype="float32", max_len=given.prompt + given.steps + 1)
    drawn = torch.randint(1, GLM4_220M["vocab_size"], (given.prompt,), generator=torch.Generator().manual_seed(1)).tolist()
    told: dict[str, Any] = {}
    for threads in given.threads:
        contenders: dict[str, Any] = {f"glmc {t}": Ours(out, drawn, given.steps, threads) for t, out in artifacts.items()}
        contenders["eager"] = Eager(checkpoint, drawn, given.steps, threads)
        samples: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}

        def sample(name: str, contenders: dict = contenders, samples: dict = samples) -> float:
            time.sleep(0.2)  # threads of the contender before wait by spinning for a while
            samples[name].append(contenders[name].rates())
            return samples[name][-1][1]

        calls: dict[str, Callable[[], float]] = {name: lambda name=name: sample(name) for name in contenders}
        measure.interleave(calls, given.rounds)
        for at, what in enumerate(("prompt", "decoding")):
            rates = {name: measure.summary([pair[at] for pair in pairs[1:]], 2) for name, pairs in samples.items()}
            told[f"{what}, {threads} threads"] = rates
            for name, rate in rates.items():
                report.add(f"{what}, {threads} threads, {name}", rate["median"], "tokens/s")
            report.add(f"{what}, {threads} threads, onnx over eager", rates["glmc onnx"]["median"] / rates["eager"]["median"],
                       "x", EAGER, "higher")
    return told


def size(scratch: Path, report: Report) -> dict[str, Any]:
    """Bytes of functions and of the whole file, at 4 and 92 layers; no weight is read for it."""
    import onnx

    from glmc.passes import onnx as writes
    from glmc.survey import survey
    from glmc.target import TARGETS

    told: dict[int, dict[str, int]] = {}
    for layers in (4, 92):
        folder = random_model(scratch / f"size-{layers}", {**width(64), "num_hidden_layers": layers})
        surveyed = survey(folder, TARGETS["onnx"])
        functions = writes.functions_of(surveyed.program, "glm4")
        places = {name: ("weights-00001.safetensors", 100_000_000, 1_000_000) for name in surveyed.weights}
        data = writes.model_of(surveyed.program, functions, places, "0")
        told[layers] = {"file": len(data), "functions": sum(f.ByteSize() for f in onnx.load_from_string(data).functions)}
    report.add("functions, 92 layers over 4", told[92]["functions"] / told[4]["functions"], "x", SIZE)
    report.add("whole file, 92 layers over 4", told[92]["file"] / told[4]["file"], "x", SIZE)
    return {str(layers): counts for layers, counts in told.items()}


def depth(given: argparse.Namespace, scratch: Path, report: Report) -> dict[str, Any]:
    """Seconds of compiling 4 and 24 layers, in turns."""
    folders = {layers: scratch / f"depth-{layers}" for layers in (4, 24)}
    for layers, folder in folders.items():
        random_model(folder, {**width(256), "num_hidden_layers": layers})
    runs: dict[int, list[dict[str, Any]]] = {layers: [] for layers in folders}

    def once(layers: int) -> float:
        out = folders[layers] / f"{len(runs[layers])}.glmc"
        made, _ = in_fresh_process(folders[layers] / "checkpoint", out, "onnx", cached=False)
        runs[layers].append(made)
        return made["seconds"]

    seconds = measure.interleave({str(n): lambda n=n: once(n) for n in folders}, given.rounds, warm=0)
    told = {layers: measure.summary(values, 2) for layers, values in seconds.items()}
    report.add("compiling, 24 layers over 4", told["24"]["median"] / told["4"]["median"], "x", TIME)
    for layers, summary in told.items():
        report.add(f"compiling, {layers} layers", summary["median"], "s")
    return {"seconds": told, "stages": {str(n): run[-1]["survey_seconds"] for n, run in runs.items()}}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--layers", type=int, default=GLM4_220M["num_hidden_layers"])
    options.add_argument("--prompt", type=int, default=256)
    options.add_argument("--steps", type=int, default=32)
    options.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--out", type=Path, default=default_out("onnx_target"))
    given = options.parse_args()
    report = Report("onnx_target", given.out)
    with tempfile.TemporaryDirectory(prefix="glmc-bench-") as made:
        scratch = Path(made)
        details = {"size_bytes": size(scratch, report), "compile": depth(given, scratch, report),
                   "tokens_per_second": speed(given, scratch, report)}
    report.finish(HOW, details)


if __name__ == "__main__":
    main()
