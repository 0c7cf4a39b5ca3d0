"""What the checkpoint's own files say about images and videos: sizes, limits, the sampler, the stamps, the token ids."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from glmc.errors import DamagedArtifact, IncompatibleArtifact
from glmc.runtime.json_object import json_object

BICUBIC = 3  # Pillow's number
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
SHORTEST, IMAGE_LONGEST, VIDEO_LONGEST, GLMGA_LONGEST = 12_544, 11_760_000, 47_040_000, 87_478_720

SAMPLER_OF_FAMILY = {"glm4v": "glm4v", "glm4v_moe": "glm4v", "glm46v": "glm46v", "glm_ocr": "glm46v", "glmga": "glmga"}
"""model_type -> the sampler, where the files name no class. A family that is not here takes no images yet."""

SAMPLER_OF_CLASS = {"Glm4v": "glm4v", "Glm46V": "glm46v", "Glmga": "glmga"}
STAMPS_OF_CLASS = {"Glm4vProcessor": "seconds", "Glm46VProcessor": "tenths"}
KEPT = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True, "do_sample_frames": True,
        "resample": BICUBIC}
"""Options with the one value that is done here; another would change the pixels."""


@dataclass(frozen=True)
class Sizing:
    """How one kind of medium is sized and scaled.

    patch: pixels of a patch's side. temporal: frames of a patch. merge: patches of a token's side. expand: what sides are
    multiples of, in tokens. shortest, longest: the least and the most pixels of all frames together, a volume. A channel c
    of a pixel in 0..255 becomes (pixel * rescale - mean[c]) / std[c].
    """

    patch: int = 14
    temporal: int = 2
    merge: int = 2
    expand: int = 1
    shortest: int = SHORTEST
    longest: int = IMAGE_LONGEST
    rescale: float = 1 / 255
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD

    @property
    def factor(self) -> int:
        """What a resized side is a multiple of, in pixels."""
        return self.patch * self.merge * self.expand


@dataclass(frozen=True)
class Tokens:
    """The ids that config.json gives: of an image's (and a video frame's) token, of a video's, and of the marks around."""

    image: int
    video: int
    begin_image: int
    end_image: int
    begin_video: int
    end_video: int


@dataclass(frozen=True)
class Settings:
    """A checkpoint's image and video side. Made by `Settings.open`.

    sampler: "glm4v", "glm46v" or "glmga". stamps: "seconds" (whole) or "tenths". fps, max_duration, max_frames: the
    sampler's numbers; each sampler uses its own of them.
    """

    image: Sizing
    video: Sizing
    sampler: str
    stamps: str
    tokens: Tokens
    fps: float = 2.0
    max_duration: float = 300.0
    max_frames: int = 640

    @classmethod
    def open(cls, read: Callable[[str], bytes | None]) -> Settings | None:
        """From `read(name)`, which gives a file's bytes or None when there is none; None where no images are taken.

        Files asked for: config.json, processor_config.json, preprocessor_config.json, video_preprocessor_config.json,
        tokenizer_config.json. What no file says is the default of transformers' class. Raises DamagedArtifact naming the
        file and the field that is wrong, IncompatibleArtifact naming an option that is not done here.
        """
        config = Described("config.json", json_object(read, "config.json"))
        family = SAMPLER_OF_FAMILY.get(str(config.values.get("model_type")))
        if family is None or config.values.get("vision_config") is None:
            return None
        whole = Described("processor_config.json", json_object(read, "processor_config.json"))
        image = whole.inner("image_processor") or Described("preprocessor_config.json",
                                                        json_object(read, "preprocessor_config.json"))
        video = whole.inner("video_processor") or Described("video_preprocessor_config.json",
                                                        json_object(read, "video_preprocessor_config.json"))
        video = video if video.values else image  # as transformers does
        pictures = _sampler(image, ("image_processor_type",)) or family
        sampler = _sampler(video, ("video_processor_type", "image_processor_type")) or family
        tower = config.inner("vision_config") or config  # an object: it is not None
        return cls(
            image=sizing_of(image, tower, pictures, IMAGE_LONGEST),
            video=sizing_of(video, tower, sampler, GLMGA_LONGEST if sampler == "glmga" else VIDEO_LONGEST),
            sampler=sampler, stamps=_stamps(family, whole, image, video, Described(
                "tokenizer_config.json", json_object(read, "tokenizer_config.json"))),
            tokens=Tokens(*(config.whole(f"{name}_token_id", None, 0, 1 << 32) for name in (
                "image", "video", "image_start", "image_end", "video_start", "video_end"))),
            fps=video.real("fps", 2.0), max_duration=video.real("max_duration", 300.0),
            max_frames=video.whole("max_frames", 640, 1, 1 << 20))


class Described:
    """The values of a file of a checkpoint, or of one object in it, with typed reading."""

    def __init__(self, name: str, values: Mapping[str, Any], above: str = "") -> None:
        self.name, self.values, self._above = name, values, above

    def inner(self, key: str) -> Described | None:
        """The object under `key`, None when there is none."""
        if (found := self.values.get(key)) is None:
            return None
        if not isinstance(found, dict):
            raise self.damaged(key, "an object", found)
        return Described(self.name, found, f"{self._above}{key}.")

    def damaged(self, key: str, expected: Any, found: Any) -> DamagedArtifact:
        """The error that this file's `key` is wrong."""
        return DamagedArtifact("the file says what cannot be", file=self.name, field=self._above + key,
                               expected=expected, found=found)

    def whole(self, key: str, default: int | None, low: int, high: int) -> int:
        """A whole number from low to high; null or nothing means the default, and None there that it must be given."""
        value = default if self.values.get(key) is None else self.values[key]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.damaged(key, f"a whole number from {low} to {high}", value)
        return value

    def real(self, key: str, default: float) -> float:
        """A finite number above 0."""
        value = default if self.values.get(key) is None else self.values[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1e9:
            raise self.damaged(key, "a number above 0, at most 1e9", value)
        return float(value)

    def three(self, key: str, default: tuple[float, float, float], positive: bool) -> tuple[float, float, float]:
        """A finite number for each of red, green and blue; for std above 0."""
        value = default if self.values.get(key) is None else self.values[key]
        wrong = not isinstance(value, (list, tuple)) or len(value) != 3 or any(
            isinstance(v, bool) or not isinstance(v, (int, float)) or not math.isfinite(v) or (positive and v <= 0)
            for v in value)
        if wrong:
            raise self.damaged(key, "three finite numbers" + " above 0" * positive, value)
        return float(value[0]), float(value[1]), float(value[2])


def sizing_of(file: Described, tower: Described, kind: str, longest: int, shortest: int = SHORTEST) -> Sizing:
    """What `file` says of one kind of medium; the tower's sizes of config.json hold where it says none, and must agree.

    Raises DamagedArtifact, IncompatibleArtifact.
    """
    for key, done in KEPT.items():
        if file.values.get(key) is not None and file.values[key] != done:
            raise IncompatibleArtifact("the checkpoint prepares its pixels in a way that is not done here", file=file.name,
                                       field=key, expected=done, found=file.values[key])
    sides = {}
    for name, key, inner, default, high in (("patch", "patch_size", "patch_size", 14, 4096),
                                            ("temporal", "temporal_patch_size", "temporal_patch_size", 2, 64),
                                            ("merge", "merge_size", "spatial_merge_size", 2, 64)):
        expected = tower.whole(inner, default, 1, high)
        sides[name] = file.whole(key, expected, 1, high)
        if sides[name] != expected:
            raise file.damaged(key, f"{inner} = {expected} of config.json", sides[name])
    size = file.inner("size")
    if size is not None and set(size.values) - {"shortest_edge", "longest_edge"}:
        raise IncompatibleArtifact("the checkpoint limits sizes in a way that is not done here", file=file.name, field="size",
                                   expected="shortest_edge and longest_edge", found=size.values)
    least = size.whole("shortest_edge", None, 1, 1 << 40) if size else shortest
    return Sizing(
        **sides, expand=file.whole("patch_expand_factor", 1, 1, 64) if kind == "glmga" else 1, shortest=least,
        longest=size.whole("longest_edge", None, least, 1 << 40) if size else longest,
        rescale=file.real("rescale_factor", 1 / 255), mean=file.three("image_mean", MEAN, positive=False),
        std=file.three("image_std", STD, positive=True))


def _sampler(file: Described, keys: tuple[str, ...]) -> str | None:
    """The sampler of the class that `file` names under the first key it has, None when it names none."""
    key = next((key for key in keys if file.values.get(key) is not None), None)
    if key is None:
        return None
    found = file.values[key]
    for kind in ("Image", "Video"):
        for end in ("Processor", "ProcessorFast", "ProcessorPil"):
            if isinstance(found, str) and found.endswith(kind + end):
                if found.removesuffix(kind + end) in SAMPLER_OF_CLASS:
                    return SAMPLER_OF_CLASS[found.removesuffix(kind + end)]
    raise IncompatibleArtifact("the checkpoint's processor is not known here", file=file.name, field=key, found=found,
                               expected=", ".join(f"{name}ImageProcessor, {name}VideoProcessor" for name in SAMPLER_OF_CLASS))


def _stamps(family: str, *files: Described) -> str:
    """How a video's times are written, by the first processor_class that `files` name, else by the family."""
    for file in files:
        if (found := file.values.get("processor_class")) is not None:
            if found not in STAMPS_OF_CLASS:
                raise IncompatibleArtifact("the checkpoint's processor is not known here", file=file.name,
                                           field="processor_class", expected=", ".join(STAMPS_OF_CLASS), found=found)
            return STAMPS_OF_CLASS[found]
    return "seconds" if family == "glm4v" else "tenths"
