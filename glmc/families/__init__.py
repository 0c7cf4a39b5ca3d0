"""One file a family, named by `model_type`. A family states dims, weight recipes, promises and a tiny config:

read(config)      Dims, refusing what the family cannot do
promises(dims)    scope ("layers.3", "model") -> fusion -> number of proved sites
recipe(name, dims)    how the published module's parameter `name` is made from checkpoint tensors
leftovers(dims)   regular expressions of checkpoint tensors that may stay unused
TINY              a config of a few kilobytes for tests
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from glmc.errors import ConfigError, UnknownFamily

FOLDER = Path(__file__).parent
_HELPERS = ("fields", "counts", "axes", "towers", "latent", "nested", "pictures")


def names() -> list[str]:
    """Every family, by file."""
    return sorted(p.stem for p in FOLDER.glob("*.py") if not p.stem.startswith("_") and p.stem not in _HELPERS)


def compiled() -> list[str]:
    """The families that this version compiles: those with weight recipes. The others are planned."""
    return [name for name in names() if hasattr(load({"model_type": name}), "recipe")]


def load(config: dict[str, Any], file: Any = "config.json") -> ModuleType:
    """The family file that `config["model_type"]`, or diffusers' `_class_name`, names. Raises ConfigError, UnknownFamily."""
    name = "glm_image_dit" if config.get("_class_name") == "GlmImageTransformer2DModel" else config.get("model_type")
    if not isinstance(name, str):
        raise ConfigError("the configuration names no family", file=file, field="model_type",
                          expected=", ".join(names()), found=name)
    if name not in names():
        raise UnknownFamily("no family of glmc has this model_type", file=file, field="model_type",
                            expected=", ".join(names()), found=name)
    return importlib.import_module(f"glmc.families.{name}")
