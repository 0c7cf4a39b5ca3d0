"""Vision towers on a GPU: glmc's artefact beside transformers, eager and SDPA, on the same weights in bfloat16.

The shapes are those of GLM-4.1V and GLM-OCR (bench/configs), with fewer blocks; a grid is an image's patches, height x width.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import gpu_clock
import measure
import torch
from checkpoints import fill
from gpu_contenders import wait
from report import Report, default_out
from vision_tower import MODELS, config_of, timed

import glmc

BAR = 1.0
HOW = ("One process, all contenders in turn, in an order that shifts each round; the weights are random and the same for all. "
       "A sample is one image from pixels on the host to the rows that the text model takes, on the device. transformers runs "
       "the published class in bfloat16 without gradients. Blocks of a tower are all alike; `blocks` says how many there were")


def made(config: dict[str, Any], folder: Path, device: str = "cuda") -> torch.nn.Module:
    """transformers' own model with random weights, saved to `folder`: its tower."""
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.utils import logging

    logging.disable_progress_bar()
    kind = AutoConfig.for_model(config["model_type"], **{k: v for k, v in config.items() if k != "model_type"})
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(kind, dtype=torch.bfloat16).eval()
    draw = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            fill(name, tensor, draw)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return model.model.visual


@torch.no_grad()
def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--blocks", type=int, default=4)
    options.add_argument("--grids", default="32x32,64x64")
    options.add_argument("--models", default=",".join(MODELS))
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--out", type=Path, default=default_out("gpu/vision"))
    given = options.parse_args()
    report = Report("gpu_vision", given.out)
    details: dict[str, Any] = {"device": gpu_clock.device(), "blocks": given.blocks}
    grids = [tuple(map(int, text.split("x"))) for text in given.grids.split(",")]
    major, minor = torch.cuda.get_device_capability()
    for title in given.models.split(","):
        with tempfile.TemporaryDirectory(prefix="glmc-bench-") as scratch:
            tower = made(config_of(MODELS[title], given.blocks), Path(scratch, "checkpoint"))
            glmc.compile(Path(scratch, "checkpoint"), Path(scratch, "x.glmc"), target=f"cuda:sm_{major}{minor}",
                         max_len=max(high * wide for high, wide in grids), weights="link")
            ours = glmc.load(Path(scratch, "x.glmc")).vision
        details[title] = compared(report, title, ours, tower, grids, given.rounds)
        report.write(HOW, details)
    report.finish(HOW, details)


def compared(report: Report, title: str, ours: Any, tower: torch.nn.Module, grids: list[tuple[int, ...]], rounds: int,
             ) -> dict[str, Any]:
    """One tower at each size of an image."""
    found: dict[str, Any] = {}
    device = next(tower.parameters()).device
    for high, wide in grids:
        grid = torch.tensor([[1, high, wide]])
        pixels = torch.randn(high * wide, ours.width, generator=torch.Generator().manual_seed(1))

        def theirs(how: str, grid: torch.Tensor = grid, pixels: torch.Tensor = pixels) -> torch.Tensor:
            tower.config._attn_implementation = how
            return tower(pixels.to(device, torch.bfloat16), grid_thw=grid.to(device)).pooler_output

        calls = {"glmc": lambda g=grid, x=pixels: ours(x, g), **{how: lambda how=how: theirs(how) for how in ("eager", "sdpa")}}
        mine, wanted = calls["glmc"]().float(), calls["eager"]().float()
        done = partial(wait, device)
        samples = measure.interleave({name: timed(call, done, done) for name, call in calls.items()}, rounds)
        medians = {name: statistics.median(one) for name, one in samples.items()}
        found[f"{high}x{wide}"] = {"apart": float((mine - wanted).abs().max() / wanted.abs().max()),
                                   **{name: measure.summary(one) for name, one in samples.items()}}
        report.add(f"{title}, {high}x{wide} patches: glmc", medians["glmc"] * 1e3, "ms")
        for how in ("eager", "sdpa"):
            report.add(f"{title}, {high}x{wide} patches: over transformers {how}", medians[how] / medians["glmc"], "x",
                       BAR if how == "eager" else None, "higher")
    return found


if __name__ == "__main__":
    main()
