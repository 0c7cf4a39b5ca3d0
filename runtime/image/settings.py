"""What a checkpoint's own files say of making an image's tokens: marks, their ids, condition images, how tokens are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from glmc.errors import DamagedArtifact, IncompatibleArtifact
from glmc.runtime.json_object import json_object
from glmc.runtime.media.settings import Described, Sizing, sizing_of
from glmc.runtime.sample import Sampling
from glmc.runtime.text import Text

SHORTEST, LONGEST = 56 * 56, 28 * 28 * 1280
"""Pixels, of the published class; the roots of them bound the sides of a condition image."""
TOP_K = 50
"""What transformers' generate takes where generation_config.json says nothing."""
_CONFIG, _TOKENIZER, _GENERATION = "config.json", "tokenizer_config.json", "generation_config.json"


@dataclass(frozen=True)
class Marks:
    """Texts of the tokens that the prompt is put together from, and ids. image: stands for a token of a condition image; begin
    and end: around the tokens of one. codes: how many ids from 0 on are tokens of images."""

    image: str
    grid_begin: str
    grid_end: str
    begin: str
    image_id: int
    begin_id: int
    end_id: int
    codes: int


@dataclass(frozen=True)
class Settings:
    """Made by `Settings.open`. sampling: what is published, with a fresh seed."""

    marks: Marks
    sizing: Sizing
    sampling: Sampling

    @classmethod
    def open(cls, read: Callable[[str], bytes | None], text: Text) -> Settings:
        """From `read(name)`, which gives a file's bytes or None when there is none.

        Files asked for: config.json, tokenizer_config.json, generation_config.json, processor_config.json,
        preprocessor_config.json. Raises DamagedArtifact, IncompatibleArtifact naming the file and the field.
        """
        config = Described(_CONFIG, json_object(read, _CONFIG))
        return cls(_marks(config, json_object(read, _TOKENIZER), text), _condition(config, read),
                   _sampling(Described(_GENERATION, json_object(read, _GENERATION))))


def _marks(config: Described, tokenizer: Mapping[str, Any], text: Text) -> Marks:
    image, grid_begin, grid_end, begin = (
        _mark(tokenizer, name) for name in ("image_token", "grid_bos_token", "grid_eos_token", "bos_token"))
    image_id, begin_id, end_id = (
        config.whole(f"image{name}_token_id", None, 0, 1 << 32) for name in ("", "_start", "_end"))
    book = config.inner("vq_config") or config
    codes = book.whole("num_embeddings", None, 1, 1 << 32)
    marks = Marks(image, grid_begin, grid_end, begin, image_id, begin_id, end_id, codes)
    for mark, wanted, field in ((marks.image, marks.image_id, "image_token_id"), (marks.begin, marks.begin_id,
                                                                                   "image_start_token_id")):
        if text.ids(mark) != [wanted]:
            raise IncompatibleArtifact("the tokenizer has another id for a mark than the model", file=_CONFIG, field=field,
                                       expected=f"{wanted} for {mark}", found=text.ids(mark))
    if min(marks.begin_id, marks.end_id) < marks.codes:
        raise DamagedArtifact("marks of images have ids of images' tokens", file=_CONFIG, field="vq_config.num_embeddings",
                              expected=f"at most {min(marks.begin_id, marks.end_id)}", found=marks.codes)
    return marks


def _mark(tokenizer: Mapping[str, Any], name: str) -> str:
    """The text of a token of this name, where transformers looks for it."""
    for place in (tokenizer, *(tokenizer.get(key) for key in ("extra_special_tokens", "model_specific_special_tokens"))):
        found = place.get(name) if isinstance(place, Mapping) else None
        found = found.get("content") if isinstance(found, Mapping) else found
        if isinstance(found, str) and found:
            return found
    raise IncompatibleArtifact("the tokenizer names no such token, which images are asked for with", file=_TOKENIZER,
                               field=name, hint="the files of the published folder `processor` belong beside config.json")


def _condition(config: Described, read: Callable[[str], bytes | None]) -> Sizing:
    whole = Described("processor_config.json", json_object(read, "processor_config.json"))
    file = whole.inner("image_processor") or Described("preprocessor_config.json",
                                                       json_object(read, "preprocessor_config.json"))
    vision = config.inner("vision_config") or config
    tower = Described(_CONFIG, {"patch_size": vision.whole("patch_size", 16, 1, 4096), "temporal_patch_size": 1,
                                "spatial_merge_size": vision.whole("spatial_merge_size", 1, 1, 64)})
    size = dict((file.inner("size") or Described(file.name, {})).values)
    limits = {"shortest_edge": file.values.get("min_pixels") or size.get("shortest_edge", SHORTEST),
              "longest_edge": file.values.get("max_pixels") or size.get("longest_edge", LONGEST)}
    return sizing_of(Described(file.name, {**file.values, "size": {**size, **limits}}), tower, "glm_image", LONGEST)


def _sampling(file: Described) -> Sampling:
    """As published, which draws whatever `do_sample` says: greedy tokens are flat."""
    top_k = file.whole("top_k", TOP_K, 0, 1 << 31)
    return Sampling(file.real("temperature", 1.0), top_k, file.real("top_p", 1.0), file.real("repetition_penalty", 1.0))
