"""Trains a small GLM-OCR (`GlmOcrForConditionalGeneration`) on drawn shapes and writes its Hugging Face checkpoint.

    python examples/train_seeing.py --out my-tiny-glm-ocr

Minutes on one core; `--steps 2` shows that the road works in seconds. Every part of the model is there, and small: a
vision tower with QK-norm, the merger, RoPE over three axes. It learns to name a shape and its colour, and what that
turns into.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from shapes import QUESTIONS, RATE, any_clip, any_picture
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional
from train_tiny import learning_rate
from transformers import GlmOcrConfig, GlmOcrForConditionalGeneration, PreTrainedTokenizerFast

from glmc.errors import NumericError
from glmc.runtime.asked import prompt_of
from glmc.runtime.media.settings import Settings
from glmc.runtime.text import Text

MARKS = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>",
         "<|begin_of_video|>", "<|end_of_video|>")
END = 0
CHAT_TEMPLATE = """{%- for m in messages -%}
<|{{ m.role }}|>
{%- if m.content is string -%}{{ m.content }}
{%- else -%}
{%- for item in m.content -%}
{%- if item.type == 'video' -%}<|begin_of_video|><|video|><|end_of_video|>
{%- elif item.type == 'image' -%}<|begin_of_image|><|image|><|end_of_image|>
{%- elif item.type == 'text' -%}{{ item.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endfor -%}
<|assistant|>"""
ROOM = 512


def tiny_config() -> dict[str, Any]:
    """config.json of GLM-OCR with every part present and every size small."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0, "mrope_section": [4, 6, 6]}
    return {
        "model_type": "glm_ocr", "architectures": ["GlmOcrForConditionalGeneration"], "tie_word_embeddings": False,
        "dtype": "bfloat16",
        "text_config": {
            "model_type": "glm_ocr_text", "hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 3, "head_dim": 32,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 272, "max_position_embeddings": ROOM,
            "rms_norm_eps": 1e-05, "pad_token_id": END, "eos_token_id": [END], "rope_parameters": rope},
        "vision_config": {
            "model_type": "glm_ocr_vision", "hidden_size": 96, "depth": 2, "num_heads": 3, "intermediate_size": 192,
            "patch_size": 14, "image_size": 84, "out_hidden_size": 128, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "hidden_act": "silu", "rms_norm_eps": 1e-05, "attention_bias": True},
        **{f"{name}_token_id": MARKS.index(mark) for name, mark in (
            ("image", "<|image|>"), ("video", "<|video|>"), ("image_start", "<|begin_of_image|>"),
            ("image_end", "<|end_of_image|>"), ("video_start", "<|begin_of_video|>"), ("video_end", "<|end_of_video|>"))},
    }


def write_text_side(folder: Path) -> None:
    """The tokenizer, whose tokens are bytes, and the processor's files."""
    pieces = [*MARKS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(list(MARKS))
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token=MARKS[END], pad_token=MARKS[END]).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    sizes = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, "processor_class": "Glm46VProcessor"}
    for name, kind, longest in (("preprocessor", "Image", 9_633_792), ("video_preprocessor", "Video", 47_040_000)):
        (folder / f"{name}_config.json").write_text(json.dumps({
            **sizes, f"{kind.lower()}_processor_type": f"Glm46V{kind}Processor",
            "size": {"shortest_edge": 12_544, "longest_edge": longest}}, indent=2) + "\n")


def batch(kind: str, count: int, draw: random.Random, text: Text, settings: Settings,
          ) -> tuple[dict[str, torch.Tensor], list[int]]:
    """`count` questions and answers as the model takes them, padded on the right, and how many tokens each question has.

    A frame is given as an image of its own, which is what it is to the model.
    """
    rows, types, pixels, grids, asked = [], [], [], [], []
    for _ in range(count):
        seen, said = any_picture(draw) if kind == "image" else any_clip(draw)
        media = {"images": [seen]} if kind == "image" else {
            "videos": [(seen, {"total_num_frames": len(seen), "fps": RATE})]}
        prompt = prompt_of(QUESTIONS[kind], text, settings, ROOM, **media)
        rows.append([*prompt.ids, *text.ids(said), END])
        types.append((prompt.seen.media >= 0).long().tolist())
        pixels.append(prompt.seen.pixels)
        grids.append(prompt.seen.grid)
        asked.append(len(prompt.ids))
    most = max(map(len, rows))
    padded = torch.tensor([row + [END] * (most - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (most - len(row)) for row in rows])
    kinds = torch.tensor([one + [0] * (most - len(one)) for one in types])
    return {"input_ids": padded, "attention_mask": mask, "mm_token_type_ids": kinds, "pixel_values": torch.cat(pixels),
            "image_grid_thw": torch.cat(grids)}, asked


def loss_of(model: GlmOcrForConditionalGeneration, given: dict[str, torch.Tensor], asked: list[int]) -> torch.Tensor:
    """Mean cross entropy, in nats a token, of the answers."""
    labels = given["input_ids"].masked_fill(given["attention_mask"] == 0, -100)
    for row, count in enumerate(asked):
        labels[row, :count] = -100
    model.model.rope_deltas = None
    logits = model(**given, use_cache=False).logits
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)


def train(model: GlmOcrForConditionalGeneration, folder: Path, options: argparse.Namespace) -> float:
    """Trains in place; returns the last mean loss. Raises NumericError."""
    def read(name: str) -> bytes | None:
        return (folder / name).read_bytes() if (folder / name).exists() else None

    text, settings = Text.open(read), Settings.open(read)
    if settings is None:
        raise NumericError("the checkpoint takes no images", field="config.json")
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
                                  betas=(0.9, 0.98))
    draw, mean, began = random.Random(options.seed), 0.0, time.monotonic()
    model.train()
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, options.learning_rate)
        moving = step % 2 and step > options.steps // 10  # pictures are learnt first
        given, asked = batch("video" if moving else "image", options.batch, draw, text, settings)
        loss = loss_of(model, given, asked)
        if not math.isfinite(nats := float(loss.detach())):
            raise NumericError("the training loss is not finite", field=f"step {step}", found=nats)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean = nats if step == 0 else 0.95 * mean + 0.05 * nats
        if step % 50 == 49:
            print(f"step {step + 1}/{options.steps} loss {mean:.4f} {(time.monotonic() - began) / (step + 1):.3f} s a step",
                  file=sys.stderr, flush=True)
    return mean


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint folder, written anew")
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=5)
    options = parser.parse_args(argv)
    torch.manual_seed(options.seed)
    new = options.out.with_name(options.out.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    config = tiny_config()
    (new / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_text_side(new)
    model = GlmOcrForConditionalGeneration(GlmOcrConfig(**{k: v for k, v in config.items() if k != "dtype"}))
    loss = train(model, new, options)
    model.to(torch.bfloat16).save_pretrained(new)
    (new / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (new / "generation_config.json").unlink(missing_ok=True)
    parameters = sum(p.numel() for p in model.parameters())
    (new / "README.md").write_text(f"""---
license: apache-2.0
---

# {options.out.name}

A small `GlmOcrForConditionalGeneration` ({parameters:,} parameters, bfloat16), trained from scratch by
`examples/train_seeing.py` on shapes that `examples/shapes.py` draws:

```
python examples/train_seeing.py --out {options.out.name} --steps {options.steps} --batch {options.batch} \\
    --learning-rate {options.learning_rate} --seed {options.seed}
```

Its last mean loss was {loss:.4f} nats a token of the answers. It knows nothing else.
""")
    shutil.rmtree(options.out, ignore_errors=True)
    new.rename(options.out)


if __name__ == "__main__":
    main()
