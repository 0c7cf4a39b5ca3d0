"""Lists of what is not quantised: literal names, globs and `re:` entries, over the checkpoint's modules and fused ones.

A fused module is one whose parameters are made from several modules of the checkpoint: `experts`, or what the compiler joins
(`qkv_proj`). The recipes alone say from which, so that names and weights cannot drift apart.
"""

from __future__ import annotations

import fnmatch
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from glmc.checkpoint.recipe import Recipe
from glmc.errors import ConfigError

Fused = Mapping[str, tuple[str, ...]]
WEIGHT = ".weight"
_SPELLINGS = (
    ("model.language_model.", "model."), ("model.language_model.", "language_model.model."),
    ("lm_head", "language_model.lm_head"), ("model.visual.", "visual."), (".attn.qkv", ".attn.qkv_proj"),
    (".self_attn.indexer.weights_proj", ".self_attn.indexers_proj"),
)
"""What tensors are called -> what lists say instead: they were written of modules of other versions and of serving engines."""
_LAYER = re.compile(r"^(?:.*\.)?layers\.(\d+)")
_DRAFTS = re.compile(r"(?:model\.)?mtp\b")
_SPECIAL = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Excludes:
    """The entries as the configuration lists them. globs: `*`, `?` and `[..]` are wildcards (fnmatch), else plain letters.
    below: a literal also names whatever lies below it. `re:` entries are regular expressions that a name begins with."""

    entries: tuple[str, ...]
    globs: bool = True
    below: bool = False

    def scan(self, names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
        """(name -> an entry that names it, the entries that name nothing). Literals cost one look-up each.

        Raises ConfigError naming an entry that is no regular expression.
        """
        own = list(names)
        spelled = {other: name for name in own for other in _spellings(name)} | {name: name for name in own}
        ordered: list[str] = []
        found: dict[str, str] = {}
        idle = []
        for entry in self.entries:
            if entry in spelled:
                found[spelled[entry]] = entry
                if not self.below:
                    continue
            elif not self.below and not self._wild(entry):
                idle.append(entry)
                continue
            ordered = ordered or sorted(spelled)
            hits = self._hits(entry, ordered)
            for name in hits:
                found.setdefault(spelled[name], entry)
            if not hits and entry not in spelled:
                idle.append(entry)
        return found, idle

    def _wild(self, entry: str) -> bool:
        return entry.startswith("re:") or (self.globs and _SPECIAL.search(entry) is not None)

    def _hits(self, entry: str, ordered: list[str]) -> list[str]:
        """The names that the entry's pattern matches; of a sorted list only those that begin as a glob does are tried."""
        if entry.startswith("re:"):
            try:
                pattern = re.compile(entry.removeprefix("re:"))
            except re.error as fault:
                raise ConfigError("an entry is no regular expression", file="config.json", field="quantization_config",
                                  expected="re:EXPRESSION", found=f"{entry}: {fault}") from fault
            return [name for name in ordered if pattern.match(name)]
        if self.globs and (special := _SPECIAL.search(entry)):
            start, matches = entry[:special.start()], re.compile(fnmatch.translate(entry)).match
        else:
            start, matches = entry + ".", re.compile("").match
        first = bisect_left(ordered, start)
        last = bisect_left(ordered, start + "\x7f", first)  # names are printable ASCII
        return [name for name in ordered[first:last] if matches(name)]

    def excluded(self, name: str, fused: Fused) -> bool:
        """Whether module `name` is excluded: by an entry that names it, else as all the modules that it is made from are.

        Raises ConfigError where only some of these are excluded.
        """
        parts = fused.get(name, ())
        found, _ = self.scan([name, *parts])
        inside = [part for part in parts if part in found]
        if name not in found and inside and len(inside) < len(parts):
            raise ConfigError("one module is made from excluded modules and from others", file="config.json", field=name,
                              expected=f"all or none of {', '.join(parts[:6])}{', ...' if len(parts) > 6 else ''}",
                              found=", ".join(inside[:6]))
        return name in found or (bool(parts) and len(inside) == len(parts))

    def over(self, modules: Iterable[str], fused: Fused) -> dict[str, str]:
        """Module of the checkpoint -> the entry that excludes it, by its own name or by that of a fused module.

        An entry that names modules of the checkpoint means these alone: `*gate*` is not `gate_up_proj`, and so not `up_proj`.
        """
        found, rest = self.scan(modules)
        wholes, _ = Excludes(tuple(rest), self.globs, self.below).scan(fused)
        for whole, entry in wholes.items():
            for part in fused[whole]:
                found.setdefault(part, entry)
        return found

    def idle(self, tensors: Iterable[str], fused: Fused, layers: int) -> list[str]:
        """The entries that name nothing: no tensor, no module with tensors below it, no fused module, nothing in draft layers
        (from number `layers` on)."""
        known = set(fused)
        for name in tensors:
            while name and name not in known:
                known.add(name)
                name = name.rpartition(".")[0]
        return [entry for entry in self.scan(known)[1] if not _drafts(entry, layers)]


def _spellings(name: str) -> list[str]:
    """The other spellings of a name; several parts of it may be spelt otherwise."""
    found = [name]
    for theirs, listed in _SPELLINGS:
        found += [one.replace(theirs, listed) for one in found if theirs in one]
    return found[1:]


def _drafts(entry: str, layers: int) -> bool:
    plain = entry.removeprefix("re:").removeprefix("^").replace("\\", "")
    layer = _LAYER.match(plain)
    return _DRAFTS.match(plain) is not None or (layer is not None and int(layer[1]) >= layers)


def modules_of(recipe: Recipe) -> tuple[str, ...]:
    """The checkpoint's modules whose weights a recipe reads, in order."""
    return tuple(name.removesuffix(WEIGHT) for name in recipe.names() if name.endswith(WEIGHT))


def fused_modules(recipes: Mapping[str, Recipe]) -> dict[str, tuple[str, ...]]:
    """Module of a parameter -> the checkpoint's modules that its recipe reads, where these are others.

    A parameter that is nobody's `weight` (experts' `gate_up_proj`) is a module too, and belongs to the one around it.
    """
    found: dict[str, dict[str, None]] = {}
    for parameter, recipe in recipes.items():
        if parameter.endswith(".bias"):
            continue
        own = parameter.removesuffix(WEIGHT)
        parts = modules_of(recipe)
        for name in (own,) if own != parameter else (own, own.rpartition(".")[0]):
            if parts and parts != (name,):
                found.setdefault(name, {}).update(dict.fromkeys(parts))
    return {name: tuple(parts) for name, parts in found.items()}
