"""GLM-Image for tests: parts as programs that run."""

from __future__ import annotations

import copy
import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import drawing
import models
import torch

import glmc
from glmc import dit_part, picture_parts
from glmc.checkpoint import components
from glmc.families import glm_image_dit
from glmc.parts import Part
from glmc.passes.outline import outline
from glmc.passes.tidy import tidy
from glmc.program import Program
from glmc.region import Bound
from glmc.runtime.image.denoise import Denoiser
from glmc.runtime.image.sharing import Sharing
from glmc.runtime.steps import Steps
from glmc.trace import trace

ALONE = {"all_gather": lambda step, given: given, "past": lambda step, given: given}
"""The steps between regions on one rank that has seen no image."""


def outlined(part: Part) -> Program:
    """The part's program without any fusion."""
    traced = trace(part.module, part.args, part.dynamic)
    tidy(traced.graph)
    return outline(traced, part.symbols(traced), part.names, part.name, part.mode)


def bound(program: Program, weights: dict[str, torch.Tensor]) -> Steps:
    """A program that runs on the CPU, in the form "any"."""
    regions = {name: Bound(region, "cpu") for name, region in program.regions.items()}
    return Steps(program, weights, {"any": {name: partial(_call, region) for name, region in regions.items()}})


def _call(region: Bound, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return region(*inputs)


def running(part: Part, weights: dict[str, torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A part as a function of its inputs by name."""
    steps = bound(outlined(part), weights)

    def run(moves: dict = ALONE, **given: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return steps.run("any", {f"input:{name}": tensor for name, tensor in given.items()}, True, moves)

    return run


GLYPHS = {"model_type": "t5", "architectures": ["T5EncoderModel"], "d_model": 20, "d_kv": 6, "d_ff": 36, "num_layers": 2,
          "num_heads": 3, "vocab_size": 384, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12,
          "feed_forward_proj": "gated-gelu", "layer_norm_epsilon": 1e-6, "is_encoder_decoder": False, "use_cache": False,
          "tie_word_embeddings": False, "pad_token_id": 0, "eos_token_id": 1}
VAE = {"in_channels": 3, "out_channels": 3, "down_block_types": ["DownEncoderBlock2D"] * 4, "norm_num_groups": 4,
       "up_block_types": ["UpDecoderBlock2D"] * 4, "block_out_channels": [4, 8, 8, 12], "layers_per_block": 1, "act_fn": "silu",
       "latent_channels": 4, "use_quant_conv": False, "use_post_quant_conv": False, "mid_block_add_attention": True,
       "latents_mean": [0.1, -0.2, 0.3, 0.05], "latents_std": [1.1, 0.9, 1.2, 0.8]}
SCHEDULE = {"num_train_timesteps": 1000, "use_dynamic_shifting": True, "base_shift": 0.25, "max_shift": 0.75,
            "base_image_seq_len": 256, "time_shift_type": "linear"}
TRANSFORMER = {**glm_image_dit.TINY, "num_layers": 2}
INDEX = {"_class_name": "GlmImagePipeline", "_diffusers_version": "0.37.0.dev0",
         **{name: list(value) for name, value in components.CLASSES.items()}}


@dataclass(frozen=True)
class Made:
    """A tiny pipeline: its folder, the published one without the first stage, and its artefact, loaded."""

    folder: Path
    published: Any
    model: Any


def randomised(module: torch.nn.Module, seed: int) -> Any:
    """The module with every parameter drawn anew, those of norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            drawn = torch.randn(tensor.shape, generator=generator) * 0.2
            tensor.copy_(1 + drawn if "norm" in name and name.endswith("weight") else drawn)
    return module.eval()


@functools.cache
def published() -> tuple[Path, Any]:
    """(checkpoint folder, published pipeline with no autoregressive model) of tiny random components."""
    from diffusers import FlowMatchEulerDiscreteScheduler, GlmImagePipeline
    from transformers import ByT5Tokenizer

    folder = models.scratch() / "pipeline"
    parts = {
        "text_encoder": randomised(picture_parts.build_encoder(GLYPHS, torch.float32, "cpu"), 2),
        "transformer": randomised(dit_part.build(TRANSFORMER, torch.float32, "cpu"), 3),
        "vae": randomised(picture_parts.build_vae(VAE, torch.float32, "cpu"), 4),
        "scheduler": FlowMatchEulerDiscreteScheduler(**SCHEDULE), "tokenizer": ByT5Tokenizer()}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    for file in drawing.published()[-1].iterdir():
        own = file.name in ("config.json", "generation_config.json", "model.safetensors")
        place = folder / ("vision_language_encoder" if own else "processor") / file.name
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, place)
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    pipeline = GlmImagePipeline(processor=None, vision_language_encoder=None, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return folder, pipeline


@functools.cache
def made(target: str = "fx") -> Made:
    """The tiny pipeline compiled and loaded, once however many tests and processes of a run ask."""
    folder, pipeline = published()
    return Made(folder, pipeline, glmc.load(models.compiled_once("pipeline", folder, target, 1, max_len=drawing.MAX_LEN)))


def shared(model: Any, world: Any, cfg: bool = False) -> Any:
    """The loaded model as one of several ranks, with the same weights; cfg: halves of them take guidance's two calls."""
    groups = world.groups(guidance=2, rows=world.size // 2) if cfg else {}
    other = copy.copy(model)
    other.ranks, other.sharing = world, Sharing(world, groups.get("rows"), groups.get("guidance"))
    other.denoiser = Denoiser(model.denoiser.steps, model.dtype, model.device, other.sharing.rows)
    return other
