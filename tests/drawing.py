"""A tiny GLM-Image's first stage: its checkpoint with the files of transformers' own processor, and transformers' answers."""

from __future__ import annotations

import functools
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models
import numpy as np
import torch
from PIL import Image

import glmc
from glmc.runtime.session import Model

MAX_LEN = 440
TEMPLATE = """{%- for m in messages -%}{%- for item in m.content -%}
{%- if item.type == 'image' -%}<|dit_token_16384|><|image|><|dit_token_16385|>
{%- elif item.type == 'text' -%}{{ item.text }}{%- endif -%}
{%- endfor -%}{%- endfor -%}{%- if add_generation_prompt -%}|assistant|{%- endif -%}"""
IMAGE, GRID_BEGIN, GRID_END, BEGIN, END = "<|image|>", "<sop>", "<eop>", "<|dit_token_16384|>", "<|dit_token_16385|>"
IDS = {120: IMAGE, 121: GRID_BEGIN, 122: GRID_END, 30: BEGIN, 31: END}
CODES = 29


@dataclass(frozen=True)
class Made:
    """reference, processor: transformers' own. session: runs the artefact in the folder `out`."""

    config: dict[str, Any]
    reference: Any
    processor: Any
    checkpoint: Path
    out: Path
    session: Model


@functools.cache
def published(dtype: str = "float32") -> tuple[dict[str, Any], Any, Any, Path]:
    """(config, transformers' model, its processor, checkpoint folder), all parts random."""
    from transformers import AutoConfig, GlmImageForConditionalGeneration, GlmImageProcessor, PreTrainedTokenizerFast
    from transformers.models.glm_image.image_processing_pil_glm_image import GlmImageImageProcessorPil

    config = models.tiny_config("glm_image", torch_dtype=dtype)
    built = GlmImageForConditionalGeneration._from_config(AutoConfig.for_model(**config), dtype=getattr(torch, dtype))
    model = models.drawn(built.eval())
    with torch.no_grad():  # so that patches, and not the biases, decide which codes are near
        model.model.vqmodel.quant_conv.weight *= 4
        model.model.visual.patch_embed.proj.weight *= 4
    folder = Path(tempfile.mkdtemp(prefix="glm_image-", dir=models.scratch()))
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(
        {"do_sample": True, "eos_token_id": 31, "pad_token_id": 0, "temperature": 0.9, "top_p": 0.75}))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=models.tokenizer(258, IDS), bos_token=BEGIN, eos_token=END, pad_token="<pad>",
        extra_special_tokens={"image_token": IMAGE, "grid_bos_token": GRID_BEGIN, "grid_eos_token": GRID_END})
    images = GlmImageImageProcessorPil(patch_size=7, temporal_patch_size=1, merge_size=1,
                                       size={"shortest_edge": 24**2, "longest_edge": 80**2})
    processor = GlmImageProcessor(images, tokenizer, TEMPLATE)
    processor.save_pretrained(folder)
    return config, model, processor, folder


@functools.cache
def made(target: str = "fx", dtype: str = "float32") -> Made:
    """Compiled for `target` and loaded."""
    config, model, processor, folder = published(dtype)
    out = models.compiled_once(f"glm_image-{dtype}", folder, target, 1, max_len=MAX_LEN)
    return Made(config, model, processor, folder, out, glmc.load(out))


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Noise on a slope, so that patches differ."""
    draw = np.random.default_rng(seed)
    slope = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 120, width))[..., None]
    return Image.fromarray((slope + draw.integers(0, 16, (height, width, 3))).astype(np.uint8))


def inputs(made: Made, prompt: str, height: int, width: int, images: list[Image.Image]) -> dict[str, Any]:
    """What transformers' processor makes, as the published pipeline asks it."""
    content: list[dict[str, Any]] = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": prompt}]
    return dict(made.processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True, return_dict=True,
                                                   return_tensors="pt", target_h=height, target_w=width))


class Exact:
    """A logits processor: image tokens alone, but for the one behind the last grid."""

    def __init__(self, last: int) -> None:
        self.last = last

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        outside = torch.arange(scores.shape[-1]) >= CODES
        return scores if ids.shape[1] == self.last else scores.masked_fill(outside, -torch.inf)


@torch.no_grad()
def greedy(made: Made, given: dict[str, Any], count: int, exact: bool = True) -> torch.Tensor:
    """What transformers' generate adds; exact: with nothing but image tokens before the last one."""
    asked = given["input_ids"].shape[1]
    only = [Exact(asked + count - 1)] if exact else []
    found = made.reference.generate(**given, max_new_tokens=count, do_sample=False, logits_processor=only, pad_token_id=0,
                                    eos_token_id=31)
    return found[0, asked:]


@torch.no_grad()
def codes(made: Made, given: dict[str, Any]) -> list[torch.Tensor]:
    """transformers' tokens of each source, int64 [h, w]."""
    inner, grids = made.reference.model, given["image_grid_thw"][:-1]
    rows = inner.visual(given["pixel_values"].to(inner.dtype), grids).pooler_output.split(grids.prod(1).tolist())
    squares = [one.view(h, w, -1).permute(2, 0, 1)[None] for one, (_, h, w) in zip(rows, grids.tolist(), strict=True)]
    return [inner.vqmodel.encode(one).image_tokens.view(one.shape[-2:]) for one in squares]
