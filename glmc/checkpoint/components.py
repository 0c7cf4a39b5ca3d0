"""A checkpoint of several folders, in the layout of diffusers, as one: model_index.json names the class of each folder.

    model_index.json           {"_class_name": "GlmImagePipeline", FOLDER: [LIBRARY, CLASS], ...}
    vision_language_encoder/   config.json and weights of the autoregressive model: its fields and tensors keep their names
    text_encoder/ transformer/ vae/    config.json and weights, whose names begin with the folder's
    scheduler/ tokenizer/      a configuration, no weights
    processor/                 the files that turn text and pictures into what the autoregressive model takes
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmc.checkpoint.folder import EXTRA, MAX_CONFIG_BYTES, STEM, Checkpoint
from glmc.checkpoint.folder import read_config as read_one
from glmc.checkpoint.strict_json import load_json
from glmc.errors import CheckpointError, ConfigError, UnknownFamily, WeightMissing

if TYPE_CHECKING:
    import torch

INDEX_FILE = "model_index.json"
PIPELINE = "GlmImagePipeline"
MAIN = "vision_language_encoder"
DIFFUSERS_STEM = "diffusion_pytorch_model"
CLASSES = {
    MAIN: ("transformers", "GlmImageForConditionalGeneration"), "processor": ("transformers", "GlmImageProcessor"),
    "text_encoder": ("transformers", "T5EncoderModel"), "tokenizer": ("transformers", "ByT5Tokenizer"),
    "transformer": ("diffusers", "GlmImageTransformer2DModel"), "vae": ("diffusers", "AutoencoderKL"),
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
}
"""Folder -> the library and class that it must name."""
CONFIGS = {"text_encoder": "config.json", "transformer": "config.json", "vae": "config.json",
           "scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
"""Folder -> the file whose fields are the component's, in `config["components"]`."""
TOKENIZER = ("tokenizer_class", "pad_token", "eos_token", "unk_token", "extra_ids", "additional_special_tokens",
             "extra_special_tokens", "added_tokens_decoder")
"""The fields of a byte tokenizer that say which ids it gives; the others say how transformers handles it."""
WEIGHTS = {MAIN: STEM, "text_encoder": STEM, "transformer": DIFFUSERS_STEM, "vae": DIFFUSERS_STEM}
"""Folder -> how its files of weights are called."""


def read_config(source: Any) -> dict[str, Any]:
    """The configuration of a checkpoint: of one folder, or of a folder of folders, whose other components' configurations
    stand under "components" by folder.

    Raises ConfigError, UnknownFamily for a pipeline or a class in it that is not known here.
    """
    folder = Path(source)
    if not (folder / INDEX_FILE).exists():
        return read_one(source)
    index = load_json(folder / INDEX_FILE, MAX_CONFIG_BYTES, error=ConfigError)
    if index.get("_class_name") != PIPELINE:
        raise UnknownFamily("no pipeline of this class is known", file=folder / INDEX_FILE, field="_class_name",
                            expected=PIPELINE, found=index.get("_class_name"))
    named = {name: value for name, value in index.items() if not name.startswith("_")}
    for name in (*CLASSES, *named):
        wanted = list(CLASSES.get(name, ("none, this folder is not known",)))
        if named.get(name) != wanted:
            raise ConfigError("a folder of the pipeline is of another class", file=folder / INDEX_FILE, field=name,
                              expected=".".join(wanted), found=named.get(name))
    config = read_one(folder / MAIN)
    if "components" in config or "_class_name" in config:
        raise ConfigError("this is no configuration of the autoregressive model", file=folder / MAIN, found="components")
    others = {name: load_json(folder / name / file, MAX_CONFIG_BYTES, error=ConfigError) for name, file in CONFIGS.items()}
    others["tokenizer"] = {key: value for key, value in others["tokenizer"].items() if key in TOKENIZER}
    return {**config, "components": others}


def open_checkpoint(source: Any) -> Checkpoint:
    """The checkpoint of one folder, or of a folder of folders. Raises what `Checkpoint.open` and `read_config` raise."""
    folder = Path(source)
    if not (folder / INDEX_FILE).exists():
        return Checkpoint.open(folder)
    config = read_config(folder)
    parts = {name: Checkpoint.open(folder / name, WEIGHTS[name]) if name in WEIGHTS
             else _files(folder / name, CONFIGS.get(name)) for name in CLASSES}
    return Components(folder, config, parts)


def _files(folder: Path, config: str | None) -> Checkpoint:
    """A folder without weights as a checkpoint of no tensors."""
    if not folder.is_dir():
        raise CheckpointError("a folder of the pipeline is not there", file=folder)
    names = dict.fromkeys([*([config] if config else []), *(name for name in EXTRA if os.path.lexists(folder / name))])
    return Checkpoint(folder, {}, {}, {}, list(names))


class Components(Checkpoint):
    """The folders of a pipeline as one checkpoint; made by `open_checkpoint`."""

    def __init__(self, folder: Path, config: dict[str, Any], parts: dict[str, Checkpoint]) -> None:
        self.parts = parts
        self._owner = {_name(part, name): (opened, name) for part, opened in parts.items() for name in opened.tensors}
        tensors = {whole: dataclasses.replace(opened.tensors[name], name=whole)
                   for whole, (opened, name) in self._owner.items()}
        if len(tensors) != sum(len(opened.tensors) for opened in parts.values()):
            raise CheckpointError("two folders of the pipeline hold a tensor of one name", file=folder)
        super().__init__(folder, config, tensors, {}, [INDEX_FILE])

    def read_rows(self, name: str, out: torch.Tensor, first: int) -> None:
        """As of one folder."""
        if name not in self._owner:
            raise WeightMissing("the checkpoint has no such tensor", file=self.folder, field=name)
        opened, inner = self._owner[name]
        opened.read_rows(inner, out, first)

    def link(self, shard: Path, place: Path) -> int:
        """As of one folder."""
        return next(opened for opened in self.parts.values() if opened.folder == shard.parent).link(shard, place)

    def digest(self) -> str:
        """SHA-256 (hex) of the configurations and headers of all folders."""
        total = hashlib.sha256()
        for part, opened in self.parts.items():
            own = opened.digest() if part in WEIGHTS else repr(sorted(self.config["components"].get(part, {}).items()))
            total.update(f"{part} {own}\n".encode())
        return total.hexdigest()

    def check_unchanged(self) -> None:
        """As of one folder, for all."""
        super().check_unchanged()
        for opened in self.parts.values():
            opened.check_unchanged()

    def extra_files(self) -> dict[str, Path]:
        """The processor's files, and the autoregressive model's own, by name."""
        return {**self.parts[MAIN].extra_files(), **self.parts["processor"].extra_files()}


def _name(part: str, name: str) -> str:
    return name if part == MAIN else f"{part}.{name}"
