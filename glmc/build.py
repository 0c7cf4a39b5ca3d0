"""The road from a checkpoint to a sealed artefact, top to bottom."""

from __future__ import annotations

import dataclasses
import itertools
import platform
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from glmc import __version__, families, published
from glmc.artifact import Artifact
from glmc.artifact_write import ArtifactWriter
from glmc.checkpoint.agree import check_scheme
from glmc.checkpoint.coded import forms_of
from glmc.checkpoint.components import open_checkpoint
from glmc.checkpoint.dequantise import dequantised
from glmc.checkpoint.folder import Checkpoint
from glmc.checkpoint.formats import UNUSED
from glmc.checkpoint.linkable import linkable
from glmc.checkpoint.origins import origins
from glmc.checkpoint.pack import Want, check, pack
from glmc.checkpoint.packed import Packed
from glmc.checkpoint.recipe import Concatenate, Recipe
from glmc.checkpoint.scheme import Scheme, scheme_of
from glmc.errors import InternalError, NotCompiled, UsageError
from glmc.families.fields import Dims
from glmc.largest_media import settings_of
from glmc.machine import cpu_flags
from glmc.native.keep import QUANTS, Keep, kept_json
from glmc.native.keeps import keeps_of, panels_of
from glmc.passes import onnx
from glmc.passes.contenders import judge_for
from glmc.passes.faster import Judge
from glmc.passes.lower import Bounds
from glmc.passes.prove import prove
from glmc.passes.prove_coded import prove_coded
from glmc.passes.prove_native import RegionProof, prove_native
from glmc.passes.refuse import refused
from glmc.passes.workers import compile_all, how_of
from glmc.placement import FIELD, Placement
from glmc.program import MAIN, ONNX, written
from glmc.survey import Progress, Survey, survey, weights_of
from glmc.target import Target, compilable
from glmc.tensor_parallel import placement_of

_NO_PRODUCT = "other steps than products read it, which take no codes"
_LAYER = re.compile(r"model\.(?:language_model\.)?layers\.(\d+)\.")
_SAFETENSORS = {"float32": "F32", "bfloat16": "BF16"}


def compile(source: Any, out: Any, target: str = "cpu", dtype: str = "auto", quant: str | None = None,
            max_len: int | None = None, max_batch: int = 1, weights: str = "copy", progress: Progress = lambda *_: None,
            ) -> Artifact:
    """Compile the checkpoint folder `source` into the artefact folder `out`; returns it, opened and checked.

    max_len: the most tokens a row may hold; None takes 4096, or the model's positions where they are fewer.
    weights: "copy", or "link": a weight that is one tensor of the checkpoint stays in the checkpoint's file, which the
    artefact then shares by a hard link; out is on the same file system.
    Raises UsageError (bounds, quant, weights, out exists), CheckpointError, PromiseBroken, NumericError, StorageError.
    """
    machine = compilable(target)
    quant = _quant(quant, machine)
    if weights not in ("copy", "link"):
        raise UsageError("no such way to keep weights", field="weights", expected="copy, link", found=weights)
    with ArtifactWriter(Path(out)) as writer:
        checkpoint = open_checkpoint(source)
        bounds = _bounds(_compilable(checkpoint.config, source), max_len, max_batch)
        settings_of(source, checkpoint.config)  # refused now, and not when the first image comes
        scheme = scheme_of(checkpoint.config)
        judge = _judge(machine, bounds, progress)
        surveyed = survey(source, machine, dtype, progress, judge if isinstance(judge, Judge) else None)
        surveyed.notes += [f"gains are predicted, no fusion was timed: {judge}"] if isinstance(judge, str) else []
        computed = published.computed_buffers(surveyed.module)
        buffers = {name: tensor for name, tensor in computed.items() if name in surveyed.weights}
        recipes = _recipes(surveyed, checkpoint, scheme)
        stays, opened = forms_of({name: recipes[name] for name in surveyed.weights if name not in buffers})
        as_they_are = stays if dtype == "auto" and quant is None else {}
        native, keeping = machine.engine == "native", machine.engine in ("native", "iree") or machine.gpu is not None
        keeps = keeps_of(surveyed.programs, machine.engine, quant, as_they_are) if keeping else {}
        if machine.gpu:
            opened |= dict.fromkeys(as_they_are.keys() - keeps.keys(), _NO_PRODUCT)
        surveyed.notes += _kept(surveyed, stays, opened, keeps, quant)
        wanted = _wanted(surveyed, buffers, keeps, recipes)
        leftover = check(checkpoint, wanted, [*surveyed.family.leftovers(surveyed.dims), *([UNUSED] if scheme else [])])
        surveyed.notes += _drafts(leftover, surveyed.dims.layers)
        linked, said = linkable(wanted, checkpoint.tensors) if weights == "link" else ({}, [])
        surveyed.notes += said
        layout = [(name, *keeps[name].stored()) if name in keeps else (name, _SAFETENSORS[d], tuple(shape))
                  for name, (d, shape) in surveyed.weights.items() if name not in linked]
        files = checkpoint.extra_files()
        functions = onnx.functions_of(surveyed.program, surveyed.dims.model_type) if machine.engine == "onnx" else []
        sink = writer.weights(layout)
        places = sink.places
        if linked:
            progress("link weights", 0, len(linked))
            places |= writer.link(linked, checkpoint)
            progress("link weights", len(linked), len(linked))
        if functions:
            writer.add_bytes(ONNX, onnx.model_of(surveyed.program, functions, places, __version__))
        proofs = [proof for runs, captured in surveyed.captured.items() for proof in prove(captured, runs)]
        progress("prove", len(proofs), len(proofs))
        ours = [program for program in surveyed.programs.values() if native and program.engine is None]
        lowering = [proof for program in ours for proof in prove_native(program, keeps)]
        decoding = prove_coded(keeps) if machine.gpu else []
        placement, placed, over_ranks = placement_of(surveyed, keeps, quant)
        lowering += _compile_regions(surveyed, placement, bounds, keeps, writer, progress)
        for name, tensor in buffers.items():
            sink.write(name, tensor)
        copied, done = {name: want for name, want in wanted.items() if name not in linked}, itertools.count(1)
        pack(checkpoint, copied, sink, lambda *_: progress("pack weights", next(done), len(copied)))
        for name, path in files.items():
            writer.add_file(name, path)
        kept = {"kept": kept_json(surveyed.programs.values(), keeps)} if keeps else {}
        writer.add_json("program.json", written(surveyed.programs) | kept |
                        ({FIELD: placement.to_json()} if placement else {}))
        writer.add_json("ledger.json", {"ledger": surveyed.ledger.to_json(), "notes": surveyed.notes, "ranks": over_ranks,
                                       "broken": surveyed.ledger.broken})
        writer.add_json("proofs.json", {"proofs": [p.to_json() for p in proofs], "native": [p.to_json() for p in lowering],
                                       "coded": [p.to_json() for p in decoding], "placed": [p.to_json() for p in placed]})
        writer.add_json("drawing.json", surveyed.drawing)
        writer.add_json("config.json", surveyed.config)
        writer.add_json("sources.json", origins({name: want.recipe for name, want in wanted.items()}, checkpoint.tensors))
        progress("seal", 0, 1)
        writer.seal(_manifest(surveyed, bounds, checkpoint, leftover, quant), check=checkpoint.check_unchanged)
        progress("seal", 1, 1)
    return surveyed.ledger.demand(Artifact.open(Path(out)))


def _compilable(config: dict[str, Any], source: Any) -> Dims:
    """Dims of a model that this version compiles. Raises NotCompiled for one that it only plans, ConfigError."""
    family = families.load(config, source)
    dims = family.read(config)
    if not hasattr(family, "recipe"):
        raise NotCompiled(f"this version plans {dims.model_type} and does not compile it", file=source, field="model_type")
    return dims


def _bounds(dims: Dims, asked: int | None, max_batch: int) -> Bounds:
    """Raises UsageError naming the bound that is out of range."""
    positions = dims.max_positions
    max_len = min(4096, positions) if asked is None else asked
    for name, value, low, high in (("max_len", max_len, 2, 1 << 20), ("max_batch", max_batch, 1, 1 << 10)):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise UsageError("the bound is out of range", field=name, expected=f"{low} to {high}", found=value)
    if max_len > positions:
        raise UsageError("the model has fewer positions", field="max_len", found=max_len,
                         expected=f"at most max_position_embeddings = {positions}")
    return Bounds(max_batch, max_len, max(2, dims.index_topk))


def _quant(quant: str | None, target: Target) -> str | None:
    """What weights are quantised to, None for nothing. Raises UsageError."""
    if quant in (None, "none"):
        return None
    if quant not in QUANTS:
        raise UsageError("no such quantisation", field="quant", expected=f"none, {', '.join(QUANTS)}", found=quant)
    if target.engine != "native":
        raise UsageError("only the native CPU engine reads quantised weights", field="quant", expected="none, or --target cpu",
                         found=f"{quant} for {target.name}")
    return quant


def _judge(target: Target, bounds: Bounds, progress: Progress) -> Judge | str | None:
    """What times fusions on the GPU, or why none are; None for targets that are no GPU."""
    return None if target.gpu is None else judge_for(target, bounds, lambda *counts: progress("time fusions", *counts))


def _recipes(surveyed: Survey, checkpoint: Checkpoint, scheme: Scheme | None) -> dict[str, Recipe]:
    """Of every parameter, published or joined; quantised weights are decoded. Raises what `check_scheme` raises."""
    family, dims, tensors = surveyed.family, surveyed.dims, checkpoint.tensors
    made = {name: family.recipe(name, dims) for name, _ in surveyed.module.named_parameters(remove_duplicate=False)}
    made |= {name: family.recipe(name, dims) for name in surveyed.weights if name not in made | surveyed.joined}
    made |= {name: Concatenate(tuple(made[part] for part in parts), 0) for name, parts in surveyed.joined.items()}
    check_scheme(checkpoint, scheme, made, published.linear_weights(surveyed.module), dims.layers)
    return made if scheme is None else {name: dequantised(recipe, tensors, scheme.block) for name, recipe in made.items()}


def _wanted(surveyed: Survey, buffers: dict[str, torch.Tensor], keeps: dict[str, Keep], recipes: dict[str, Recipe],
            ) -> dict[str, Want]:
    def want(name: str, dtype: str, shape: tuple[int, ...]) -> Want:
        keep = keeps.get(name)
        if keep is None:
            return Want(recipes[name], shape, _SAFETENSORS[dtype])
        stored, packed = keep.stored()
        return Want(Packed(recipes[name], keep) if keep.packed else recipes[name], packed, stored)

    return {name: want(name, d, shape) for name, (d, shape) in surveyed.weights.items() if name not in buffers}


def _kept(surveyed: Survey, stays: dict[str, str], opened: dict[str, str], keeps: dict[str, Keep], quant: str | None,
          ) -> list[str]:
    """What became of the matrices that the checkpoint has quantised, and of the tower where the text is to be."""
    tower = weights_of(program for part, program in surveyed.programs.items() if part != MAIN)
    otherwise = surveyed.dtype if quant is None else quant
    kept = [name for name, form in stays.items() if name in keeps and keeps[name].form == form]
    forms = ", ".join(f"{count} in {form}" for form, count in sorted(Counter(stays[name] for name in kept).items()))

    def fate(name: str) -> str:
        if name in tower:
            return f"{surveyed.dtype}: they are the vision tower's, and only those of the text stay in codes"
        if name in keeps and keeps[name].split:
            return f"{otherwise}: latent attention has its own form of it"
        asked = f"{otherwise} is asked for, or the engine takes no matrix in the checkpoint's form"
        return f"{otherwise}: {opened.get(name, asked)}"

    others = Counter(map(fate, (stays.keys() | opened.keys()) - set(kept)))
    return [*([f"quantised matrices are kept as they are: {forms}"] if kept else []),
            *(f"{count} quantised matrices are made {what}" for what, count in sorted(others.items())),
            *([f"only the text is made {quant}: the vision tower stays {surveyed.dtype}"] if quant and tower else [])]


def _drafts(leftover: list[str], layers: int) -> list[str]:
    """A note on the layers that predict further tokens, which the published model does not have."""
    found = [int(m[1]) for name in leftover if (m := _LAYER.match(name)) and int(m[1]) >= layers]
    return [f"layers {sorted(set(found))} predict further tokens and are left out: {len(found)} tensors"] if found else []


def _compile_regions(surveyed: Survey, placement: Placement | None, bounds: Bounds, keeps: dict[str, Keep],
                     writer: ArtifactWriter, progress: Progress) -> list[RegionProof]:
    """The text of each distinct region; its library once a form where the engine wants one, or the kernels that it starts.

    Returns the proofs of what IREE compiled."""
    regions = surveyed.program.regions.values()
    programs = [*surveyed.programs.values(), *([placement.program] if placement else [])]
    for region in {region.name: region for program in programs for region in program.regions.values()}.values():
        writer.add_bytes(f"regions/{region.name}.region", region.text().encode())
    with tempfile.TemporaryDirectory(prefix="glmc-regions-") as scratch:
        if (how := how_of(surveyed.target)) is not None:
            jobs = [(region, form) for region in regions for form in bounds.forms()]
            panels = panels_of(surveyed.program, keeps)
            try:
                for made in compile_all(jobs, bounds, Path(scratch), lambda n: progress("compile regions", n, len(jobs)), how,
                                        panels):
                    writer.add_file(f"regions/{made.name}", made)
            except InternalError as fault:
                raise fault if how.name == "aoti" else refused(surveyed.program, fault, surveyed.target) from fault
            if surveyed.target.engine == "iree":
                from glmc.passes.prove_iree import prove_iree

                return prove_iree(surveyed.program, panels, bounds, Path(scratch))
        elif surveyed.target.gpu is not None:
            from glmc.passes.ahead import build_all

            for made in build_all(surveyed.programs, keeps, bounds, surveyed.target.gpu, Path(scratch),
                                  lambda *counts: progress("build kernels", *counts)):
                writer.add_file(f"kernels/{made.name}", made)
    return []


def _manifest(surveyed: Survey, bounds: Bounds, checkpoint: Checkpoint, leftover: list[str], quant: str | None,
              ) -> dict[str, Any]:
    return {
        "glmc": __version__, "torch": torch.__version__, "family": surveyed.dims.model_type,
        "target": surveyed.target.name, "engine": surveyed.target.engine, "dtype": surveyed.dtype, "quant": quant,
        "machine": {"arch": platform.machine(), "cpu_flags": cpu_flags()} if surveyed.target.engine in ("aoti", "iree") else {},
        "dims": dataclasses.asdict(surveyed.dims), "bounds": {"max_len": bounds.max_len, "max_batch": bounds.max_batch},
        "source": checkpoint.digest(), "left_unused": leftover, "seconds": surveyed.seconds,
    }
