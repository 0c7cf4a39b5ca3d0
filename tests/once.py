"""What many tests need alike and none of them is about is made once a process: surveys, traces, numeric proofs."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from glmc import survey as surveying
from glmc.checkpoint.folder import read_config
from glmc.families import fields
from glmc.passes.prove import Captured, Proof, prove
from glmc.survey import Progress, Survey
from glmc.target import Target
from glmc.trace import Trace, trace

_SURVEYS: dict[tuple, Survey] = {}
_TRACES: dict[tuple, Trace] = {}
_PROOFS: dict[tuple, Proof] = {}


def survey(source: Path, target: Target, dtype: str = "auto", progress: Progress = lambda *_: None, judge: None = None,
           ) -> Survey:
    """Stands in for `glmc.build.survey`: once for each configuration, however it is quantised, target and dtype."""
    progress("trace", 0, 1)
    config = read_config(source)
    plain = {name: value for name, value in config.items() if name != "quantization_config"}
    key = (json.dumps(plain, sort_keys=True), target, surveying.dtype_of(config, dtype, target))
    if key not in _SURVEYS:
        _SURVEYS[key] = surveying.survey(source, target, dtype)
    kept = _SURVEYS[key]
    dims = kept.family.read(config)
    others = [note for note in kept.notes if note not in fields.notes(kept.dims)]
    return dataclasses.replace(kept, config=config, dims=dims, notes=[*fields.notes(dims), *others])


def proofs(captured: list[Captured], target: Target) -> list[Proof]:
    """Stands in for `glmc.build.prove`: once for each kind of site and target."""
    groups: dict[tuple, list[Captured]] = {}
    for one in captured:
        groups.setdefault((one.key(), target), []).append(one)
    for key, group in groups.items():
        if key not in _PROOFS:
            (_PROOFS[key],) = prove(group, target)
    return [dataclasses.replace(_PROOFS[key], places=sum(len(one.places) for one in group)) for key, group in groups.items()]


def traces(config: str) -> Callable[..., Trace]:
    """Stands in for `glmc.survey.trace`: each part of a configuration once for each dtype, whatever the target."""
    def traced(module: nn.Module, args: tuple, dynamic: Any) -> Trace:
        dtypes: list[torch.dtype] = [parameter.dtype for parameter in module.parameters()]
        key = (config, type(module), *dtypes)
        if key not in _TRACES:
            _TRACES[key] = trace(module, args, dynamic)
        kept = _TRACES[key]
        return Trace(copy.deepcopy(kept.graph), dict(kept.parameters), [*kept.inputs])
    return traced


@contextmanager
def alike(config: str) -> Iterator[None]:
    """Meanwhile models of a configuration are compiled with what was traced and proved before."""
    with mock.patch("glmc.build.prove", proofs), mock.patch("glmc.survey.trace", traces(config)):
        yield
