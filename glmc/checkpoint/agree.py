"""quantization_config and the tensors must say the same of every weight, or all that disagrees is listed at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from glmc.checkpoint.exclude import WEIGHT, fused_modules, modules_of
from glmc.checkpoint.folder import Checkpoint, listing
from glmc.checkpoint.formats import SCALES, Source, source_of
from glmc.checkpoint.recipe import Recipe
from glmc.checkpoint.scheme import Scheme
from glmc.errors import CheckpointError, ConfigError, SchemeMismatch


def check_scheme(checkpoint: Checkpoint, scheme: Scheme | None, recipes: Mapping[str, Recipe], linears: Iterable[str],
                 layers: int) -> dict[str, int]:
    """Compare what is said with what is there, headers only; returns how many weights have each form.

    recipes: of every parameter, published or joined. linears: those of them that are quantised unless excluded; of the others
    only that an excluded one has no scale is asked. layers: of the model; what lies past them is not asked.
    Raises SchemeMismatch that lists everything; where a scale itself is at fault, what `source_of` raises of it.
    """
    fused = fused_modules(recipes)
    modules = list(dict.fromkeys(m for recipe in recipes.values() for m in modules_of(recipe)
                                 if m + WEIGHT in checkpoint.tensors))
    if scheme is None:
        _plain(checkpoint, modules)
        return {}
    sources, faulty = _sources(checkpoint, scheme, modules)
    faults = list(faulty.values())
    excluded = scheme.excludes.over(modules, fused)
    expected = {m for name in linears for m in modules_of(recipes[name])}
    problems = [line for module in modules if module not in faulty
                and (line := _problem(module, scheme, sources, excluded, expected)) is not None]
    problems = [f"{line} ({checkpoint.info(line.split(':')[0]).file.name})" for line in problems]
    problems += _partly(scheme, fused, recipes)
    problems += [f"{entry}: an entry of {scheme.listed} that names nothing in the checkpoint"
                 for entry in scheme.excludes.idle(checkpoint.tensors, fused, layers)]
    if len(faults) == 1 and not problems:
        raise faults[0]
    if faults or problems:
        lines = [*(fault.sentence().replace("\n", ",") for fault in faults), *problems]
        raise (type(faults[0]) if faults else SchemeMismatch)(
            f"quantization_config ({scheme.method}) and the tensors disagree ({len(lines)}):\n{listing(lines)}",
            file=checkpoint.folder, hint=SchemeMismatch.hint)
    return dict(Counter(source.form for source in sources.values()))


def _plain(checkpoint: Checkpoint, modules: Iterable[str]) -> None:
    scaled = [m + WEIGHT for m in modules if any(m + WEIGHT + end in checkpoint.tensors for end in SCALES)]
    if scaled:
        raise SchemeMismatch(f"{len(scaled)} weights have scales, and config.json says nothing of it\n{listing(scaled)}",
                             file=checkpoint.folder, field="quantization_config", found="nothing",
                             hint="only quantization_config in config.json is read, no other file")


def _sources(checkpoint: Checkpoint, scheme: Scheme, modules: Iterable[str],
             ) -> tuple[dict[str, Source], dict[str, CheckpointError]]:
    found: dict[str, Source] = {}
    faults: dict[str, CheckpointError] = {}
    for module in modules:
        try:
            source = source_of(module + WEIGHT, checkpoint.tensors, scheme.block)
        except CheckpointError as fault:
            faults[module] = fault
            continue
        if source is not None:
            found[module] = source
    return found, faults


def _problem(module: str, scheme: Scheme, sources: Mapping[str, Source], excluded: Mapping[str, str], expected: set[str],
             ) -> str | None:
    source, entry = sources.get(module), excluded.get(module)
    if source is not None and entry is not None:
        return f"{module}{WEIGHT}: has a scale, and the entry {entry} of {scheme.listed} excludes it"
    if source is not None and source.form not in scheme.forms:
        return f"{module}{WEIGHT}: is {source.form}, and the configuration says {' or '.join(scheme.forms)}"
    if source is None and entry is None and module in expected:
        return f"{module}{WEIGHT}: has no scale, and no entry of {scheme.listed} excludes it"
    return None


def _partly(scheme: Scheme, fused: Mapping[str, tuple[str, ...]], recipes: Mapping[str, Recipe]) -> list[str]:
    """Published parameters made from excluded modules and from others. What the compiler joins may be mixed: it is its own."""
    lines = []
    for name, parts in fused.items():
        if name in recipes and name + WEIGHT not in recipes:
            try:
                scheme.excludes.excluded(name, {name: parts})
            except ConfigError as fault:
                lines.append(f"{name}: {fault.what}: {fault.found}")
    return lines
