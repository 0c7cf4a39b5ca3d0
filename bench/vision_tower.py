"""Vision towers in bfloat16 on a CPU: glmc's native library beside transformers, eager and SDPA, on the same weights.

    python bench/vision_tower.py [--blocks 4] [--grids 32x32,64x64] [--out FILE]

The shapes are those of GLM-4.1V and GLM-OCR (bench/configs), with fewer blocks; a grid is an image's patches, height x width.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import torch
from report import ROOT, Report, default_out

from glmc.checkpoint.tensor_bytes import torch_dtype
from glmc.native import variant
from glmc.native.keep import forms
from glmc.native.tower import Tower
from glmc.survey import survey
from glmc.target import named
from glmc.vision_parts import layout

MODELS = {"GLM-4.1V": "glm-4.1v-9b-thinking", "GLM-OCR": "glm-ocr"}
BAR = 1.2
HOW = ("One process, all contenders with as many threads, in turn, in an order that shifts each round; the weights are random "
       "and the same for all. A sample is one image from pixels to the rows that the text model takes. transformers runs the "
       "published class in bfloat16 without gradients. Blocks of a tower are all alike; `blocks` says how many there were")


def config_of(name: str, blocks: int) -> dict[str, Any]:
    """The published configuration with so many vision blocks, and one layer of text, which is not run."""
    found = json.loads((ROOT / "bench" / "configs" / f"{name}.json").read_text())
    found["vision_config"]["depth"], found["text_config"]["num_hidden_layers"] = blocks, 1
    return found


def published(config: dict[str, Any], how: str) -> torch.nn.Module:
    """transformers' tower, random weights by one seed."""
    from transformers import AutoConfig, AutoModel

    kind = AutoConfig.for_model(config["model_type"], **{k: v for k, v in config.items() if k != "model_type"})
    kind.vision_config._attn_implementation = how
    torch.manual_seed(0)
    return AutoModel.from_config(kind.vision_config, dtype=torch.bfloat16).eval()


def ours(config: dict[str, Any], theirs: torch.nn.Module, threads: int) -> Tower:
    """The same tower, its weights in panels."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        surveyed = survey(folder, named("cpu"), "bfloat16")
    program = surveyed.programs["vision"]
    kept, held = forms(program, None), {}
    state = {f"model.visual.{name}": tensor for name, tensor in [*theirs.named_parameters(), *theirs.named_buffers()]}
    for name, keep in kept.items():
        whole = torch.cat([state[part] for part in surveyed.joined.get(name, (name,))])
        dtype, shape = keep.stored()
        held[name] = torch.empty(shape, dtype=torch_dtype(dtype))
        keep.pack(whole, held[name]) if keep.packed else held[name].copy_(whole)
    return Tower(program, held, kept, threads)


def timed(call: Callable[[], Any], before: Callable[[], Any] = lambda: time.sleep(0.05),
          after: Callable[[], Any] = lambda: None) -> Callable[[], float]:
    """The seconds of a call up to the end of `after`. before: untimed; as it is, the others' threads stop to wait meanwhile."""
    def seconds() -> float:
        before()
        began = time.perf_counter()
        call()
        after()
        return time.perf_counter() - began
    return seconds


@torch.no_grad()
def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--blocks", type=int, default=4)
    options.add_argument("--grids", default="32x32,16x16,64x64")
    options.add_argument("--models", default=",".join(MODELS))
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--profile", action="store_true", help="print the seconds of each kernel of glmc")
    options.add_argument("--out", type=Path, default=default_out("vision_tower"))
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    report, details = Report("vision_tower", given.out), {"blocks": given.blocks, "threads": given.threads, "build": variant()}
    for title in given.models.split(","):
        config = config_of(MODELS[title], given.blocks)
        theirs = {how: published(config, how) for how in ("eager", "sdpa")}
        tower = ours(config, theirs["eager"], given.threads)
        details[title] = {"bytes_per_patch": tower.patch_bytes, "images": {}}
        for text in given.grids.split(","):
            grid = torch.tensor([[1, *map(int, text.split("x"))]])
            positions, ends = layout(grid, 2)
            pixels = torch.randn(len(positions), tower.pixels, generator=torch.Generator().manual_seed(1)).bfloat16()
            wide = pixels.float()
            calls = {"glmc": lambda t=tower, p=positions, e=ends, g=grid, x=wide: t.run(x, p, e, g),
                     **{how: lambda m=m, g=grid, x=pixels: m(x, grid_thw=g).pooler_output for how, m in theirs.items()}}
            found, expected = calls["glmc"](), calls["eager"]().float()
            apart = float((found - expected).abs().max() / expected.abs().max())
            samples = measure.interleave({name: timed(call) for name, call in calls.items()}, given.rounds)
            details[title]["images"][text] = {"apart": apart, **{n: measure.summary(s) for n, s in samples.items()}}
            medians = {name: statistics.median(s) for name, s in samples.items()}
            report.add(f"{title}, {text} patches: glmc", medians["glmc"], "s")
            for how in theirs:
                report.add(f"{title}, {text} patches: over transformers {how}", medians[how] / medians["glmc"], "x",
                           BAR if how == "eager" else None, "higher")
            if given.profile:
                profile(tower, calls["glmc"], len(positions))
    report.finish(HOW, details)


def profile(tower: Tower, call: Callable[[], Any], patches: int) -> None:
    """Print what each kernel took, in milliseconds of the first thread, over one run."""
    spent = tower.profile(patches)
    call()
    for kernel in sorted({name for name, _ in spent}):
        print(f"    {kernel:24} {1e3 * sum(float(s) for name, s in spent if name == kernel):8.1f} ms")


if __name__ == "__main__":
    main()
