"""Tiny GLM models for tests: a randomised transformers model, its checkpoint folder, and its artefact, each made once.

Every parameter and persistent buffer is random, since what is one or zero hides mistakes: norm weights spread around 1,
biases and the router's correction bias are not zero.
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import once
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

import glmc
from glmc import families
from glmc.checkpoint.components import read_config
from glmc.runtime.session import Model

MAX_LEN = 80
MAX_BATCH = 3
_SHALLOW = {"num_hidden_layers": 2}
DRAWING = ["glm_image"]
"""Families that make images: their tests are in tests/runtime/image."""
SEEING = [name for name in families.compiled()
          if "vision_config" in families.load({"model_type": name}).TINY and name not in DRAWING]
"""Families of images and videos: their tests are in tests/runtime/test_seeing.py."""
READING = [name for name in families.compiled() if name not in SEEING and name not in DRAWING]
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in READING},
    "glm4_moe-no-qk-norm": ("glm4_moe", {"use_qk_norm": False, **_SHALLOW}),
    # The rotary width is 6 of 14, its half is odd, and so are the counts of heads, experts and the hidden size.
    "glm4_moe-odd": ("glm4_moe", {"num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 14, "hidden_size": 45,
                                  "partial_rotary_factor": 0.43, "n_routed_experts": 7, "n_group": 1,
                                  "moe_intermediate_size": 17, "intermediate_size": 51, **_SHALLOW}),
    "glm4_moe-full-rotary": ("glm4_moe", {"partial_rotary_factor": 1.0, "num_hidden_layers": 1}),
    "glm4-full-rotary": ("glm4", {"partial_rotary_factor": 1.0, **_SHALLOW}),
    "glm4_moe-no-bias": ("glm4_moe", {"attention_bias": False, **_SHALLOW}),
    "glm4_moe-tied": ("glm4_moe", {"tie_word_embeddings": True, **_SHALLOW}),
    # Compressed rows are opened from 20 new tokens on, and lanes turn in halves.
    "glm4_moe_lite-halves": ("glm4_moe_lite", {"rope_interleave": False, "num_attention_heads": 3, "num_key_value_heads": 3,
                                               "qk_nope_head_dim": 10, "v_head_dim": 14, "kv_lora_rank": 32, **_SHALLOW}),
    "glm_moe_dsa-own-indexers": ("glm_moe_dsa", {"indexer_types": ["full", "full"], **_SHALLOW}),
    "glm-tied-no-bias": ("glm", {"tie_word_embeddings": True, "attention_bias": False, **_SHALLOW}),
}
"""Name -> family and what differs from the family's tiny configuration."""


MARKS = {"image": "<|image|>", "video": "<|video|>", "image_start": "<|begin_of_image|>", "image_end": "<|end_of_image|>",
         "video_start": "<|begin_of_video|>", "video_end": "<|end_of_video|>"}
"""Special tokens of the vision models, by the names that config.json has for their ids."""
TEMPLATE = """{%- for m in messages -%}
|{{ m.role }}|
{%- if m.content is string -%}{{ m.content }}{%- else -%}
{%- for item in m.content -%}
{%- if item.type == 'video' or 'video' in item -%}<|begin_of_video|><|video|><|end_of_video|>
{%- elif item.type == 'image' or 'image' in item -%}<|begin_of_image|><|image|><|end_of_image|>
{%- elif item.type == 'text' -%}{{ item.text }}{%- endif -%}
{%- endfor -%}{%- endif -%}
{%- endfor -%}
|assistant|"""
"""A chat template with the published spelling of images and videos."""


@dataclass(frozen=True)
class Made:
    """A model in its three forms. `reference` is transformers' own; `session` runs the artefact in the folder `out`."""

    config: dict[str, Any]
    reference: torch.nn.Module
    checkpoint: Path
    out: Path
    session: Model


def tiny_config(family: str, **changes: Any) -> dict[str, Any]:
    """The family's tiny configuration with `changes`, where a tuple stands for a list; the keys of config.json."""
    listed = {name: [*value] if isinstance(value, tuple) else value for name, value in changes.items()}
    return {**families.load({"model_type": family}).TINY, **listed}


def randomised(config: dict[str, Any], dtype: torch.dtype = torch.float32, seed: int = 1) -> torch.nn.Module:
    """transformers' model for `config` in `dtype`, every parameter and persistent buffer drawn anew."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    # The loop over experts, since transformers' grouped product takes neither odd sizes nor float64 on a CPU.
    experts = {"experts_implementation": "eager"} if "n_routed_experts" in config.get("text_config", config) else {}
    kind = AutoModelForImageTextToText if "text_config" in config else AutoModelForCausalLM
    return drawn(kind.from_config(AutoConfig.for_model(**config), dtype=dtype, **experts).eval(), seed)


def drawn(model: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    """`model`, every parameter and persistent buffer drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            spread = 0.3 if "norm" in name or "bias" in name else 0.15
            noise = torch.randn(tensor.shape, generator=generator) * spread
            tensor.copy_(1 + noise if "norm" in name else noise)
    return model


def save(model: torch.nn.Module, config: dict[str, Any], folder: Path) -> Path:
    """Write the checkpoint folder as a publisher would: config.json, weights and a byte-level tokenizer."""
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return describe(config, folder)


def describe(config: dict[str, Any], folder: Path) -> Path:
    """Write what a checkpoint has besides weights: config.json, a tokenizer, and how images and videos become patches."""
    (folder / "config.json").write_text(json.dumps(config))
    vision = config.get("vision_config")
    marks = {config[f"{name}_token_id"]: mark for name, mark in MARKS.items()} if vision else {}
    tokenizer(config.get("text_config", config)["vocab_size"], marks).save(str(folder / "tokenizer.json"))
    if vision:
        (folder / "chat_template.jinja").write_text(TEMPLATE)
        kind = {"glm4v": "Glm4v", "glm4v_moe": "Glm4v", "glmga": "Glmga"}.get(config["model_type"], "Glm46V")
        sizes = {"patch_size": vision["patch_size"], "temporal_patch_size": vision["temporal_patch_size"],
                 "merge_size": vision["spatial_merge_size"], "size": {"shortest_edge": 784, "longest_edge": 6272},
                 "processor_class": "Glm4vProcessor" if kind == "Glm4v" else "Glm46VProcessor"}
        (folder / "preprocessor_config.json").write_text(json.dumps({**sizes, "image_processor_type": f"{kind}ImageProcessor"}))
        (folder / "video_preprocessor_config.json").write_text(json.dumps(
            {**sizes, "size": {"shortest_edge": 784, "longest_edge": 9408}, "video_processor_type": f"{kind}VideoProcessor"}))
    return folder


def tokenizer(size: int, marks: dict[int, str] | None = None) -> Tokenizer:
    """`size` ids: two special tokens, then bytes; random ids therefore decode to text that is partly not UTF-8.

    marks: further special tokens by id, in the place of a byte.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["<pad>", "<eos>", *alphabet][:size]
    for i, mark in (marks or {}).items():
        pieces[i] = mark
    made = Tokenizer(BPE({piece: i for i, piece in enumerate(pieces)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(["<pad>", "<eos>", *(marks or {}).values()])
    return made


@functools.cache
def scratch() -> Path:
    """A folder of this test process, removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="glmc-models-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def published(variant: str, dtype: str = "float32", **changes: Any) -> tuple[dict[str, Any], torch.nn.Module, Path]:
    """(config, transformers model, checkpoint folder) of a variant."""
    family, differs = VARIANTS.get(variant, (variant, {}))
    config = tiny_config(family, torch_dtype=dtype, **{**differs, **changes})
    model = randomised(config, getattr(torch, dtype))
    folder = Path(tempfile.mkdtemp(prefix=f"{variant}-", dir=scratch()))
    return config, model, save(model, config, folder)


@functools.cache
def made(variant: str, dtype: str = "float32", target: str = "fx", max_batch: int = MAX_BATCH, **changes: Any) -> Made:
    """A variant compiled for `target` and loaded; compiled once however many tests and processes of a run ask."""
    config, model, checkpoint = published(variant, dtype, **changes)
    out = compiled_once(variant, checkpoint, target, max_batch, dtype, *sorted(changes.items()))
    return Made(config, model, checkpoint, out, glmc.load(out))


def compiled_once(name: str, checkpoint: Path, target: str, max_batch: int, *also: Any, max_len: int = MAX_LEN) -> Path:
    """The artefact of what is told, made by the first process of a run that asks; the others wait for it."""
    told = hashlib.sha256(repr((name, target, max_batch, also)).encode()).hexdigest()[:16]
    run = Path(os.environ.get("TESTS_FOLDER") or scratch())
    out = run / told / f"{name}.glmc"
    with (run / f"{told}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            out.parent.mkdir(exist_ok=True)
            with two_threads() if target == "cpu:aoti" else nullcontext(), once.alike(json.dumps(read_config(checkpoint))):
                glmc.compile(checkpoint, out, target=target, max_len=max_len, max_batch=max_batch)
    return out


@contextmanager
def two_threads() -> Iterator[None]:
    """AOTInductor's loops are made for as many threads as there are when it compiles, in processes of its own too."""
    threads = torch.get_num_threads()
    with mock.patch.dict(os.environ, OMP_NUM_THREADS="2"):
        torch.set_num_threads(2)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def aot(dtype: str = "float32") -> Made:
    """The one model that the default suite compiles with AOTInductor: two routed layers, which share their libraries."""
    return made("glm4_moe", dtype, target="cpu:aoti", max_batch=2, num_hidden_layers=2, first_k_dense_replace=0)


def prompts(vocabulary: int, *lengths: int, seed: int = 7) -> list[list[int]]:
    """Random prompts of these lengths; none holds the ids 0 and 1, which are special."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, vocabulary, (n,), generator=generator).tolist() for n in lengths]


@torch.no_grad()
def logits(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    """transformers' logits of one prompt, [len(ids), vocabulary] in the model's dtype."""
    return model(torch.tensor([ids])).logits[0]


@torch.no_grad()
def greedy(model: torch.nn.Module, ids: list[int], count: int) -> list[int]:
    """What transformers' generate adds to one prompt, without the final stop token."""
    whole = model.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False, pad_token_id=0)
    added = whole[0, len(ids):].tolist()
    return added[:-1] if added[-1:] == [1] else added
