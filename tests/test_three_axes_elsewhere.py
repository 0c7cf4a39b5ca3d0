"""Text programs of the vision models on the NPU's emulation and in Triton's interpreter: the CPU's logits, unequal rows."""

from __future__ import annotations

import functools
import zlib
from dataclasses import dataclass

import models
import pytest
import torch
from torch import nn
from traced import matcher as traced_matcher

from glmc import published
from glmc.kernels import npu, triton
from glmc.passes.choose import choose
from glmc.passes.merge import fold
from glmc.passes.outline import outline
from glmc.passes.rewrite import rewrite
from glmc.program import Program
from glmc.region import Bound
from glmc.runtime.steps import Steps
from glmc.sites import find_sites
from glmc.survey import parts_of
from glmc.target import named
from glmc.trace import trace
from glmc.trail import Trail

ELSEWHERE = {"npu:ascend910b": npu.emulated, "cuda:sm_90": triton.interpreted}
CACHED = 9
POSITIONS = torch.tensor([[0, 1, 2, 2, 2, 2, 5], [0, 1, 2, 2, 3, 3, 6], [0, 1, 2, 3, 2, 3, 7]])
"""Text, an image's grid and text again: no two axes alike."""


def config_of(family):
    """The family's tiny model with fewer layers; heads of 16 channels, since the NPU's op takes powers of two."""
    config = models.tiny_config(family)
    text = {**config["text_config"], "num_hidden_layers": 1 if family == "glm4v" else 2}
    vision = {**config["vision_config"], "depth": 1}
    if family == "glm4v":
        text |= {"hidden_size": 80, "rope_parameters": {**text["rope_parameters"], "partial_rotary_factor": 0.75}}
        vision |= {"out_hidden_size": 80}
    return {**config, "text_config": text, "vision_config": vision}


def drawn(name, dtype, shape):
    """A weight that depends on its name alone; norms lie around one."""
    made = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode()))) * 0.15
    return (made + 1 if "norm" in name else made).to(getattr(torch, dtype))


@dataclass(frozen=True)
class Found:
    """The text program of a family for a target, its weights' kinds and shapes, and why packed rows were refused."""

    program: Program
    module: nn.Module
    machine: str
    weights: dict[str, tuple]
    refused: list[str]


@functools.cache
def found_for(family, target):
    """What a survey does, for the text part alone."""
    config = config_of(family)
    module, (part, *_) = parts_of(config, torch.float32)
    traced = trace(part.module, part.args, part.dynamic)
    searched = find_sites(traced, Trail(), traced_matcher())
    decided = choose(searched.sites, traced.graph, named(target))
    rewrite(traced.graph, [d.site for d in decided if d.reason is None])
    fold(traced, searched.merged)
    program = outline(traced, part.symbols(traced), part.names, part.name)
    weights = {name.removeprefix("weight:"): (spec.dtype, spec.shape) for step in program.steps
               for name, (_, role, spec) in zip(step.inputs, program.regions[step.region].inputs, strict=True)
               if role == "weight"}
    refused = [d.reason for d in decided if d.site.fusion == "split_qkv_norm_rope" and d.reason is not None]
    return Found(program, module, named(target).machine, weights, refused)


def logits(found):
    """Prefill of seven tokens and two decode steps of the text program."""
    program, text = found.program, found.module.config.get_text_config()
    buffers = published.computed_buffers(found.module)
    weights = {n: buffers.get(n, drawn(n, *spec)) for n, spec in found.weights.items()}
    bound = {name: Bound(region, found.machine) for name, region in program.regions.items()}
    calls = {name: (lambda inputs, b=b: b(*inputs)) for name, b in bound.items()}
    steps = Steps(program, weights, {"prefill": calls, "decode": calls})
    width = getattr(text, "head_dim", text.hidden_size // text.num_attention_heads)
    cache = torch.zeros(text.num_hidden_layers, 2, 1, CACHED, text.num_key_value_heads, width)
    ids, made = torch.arange(3, 3 + CACHED)[None], []
    for start, end in ((0, 7), (7, 8), (8, 9)):
        positions = POSITIONS if end == 7 else POSITIONS[:, -1:] + end - 7 + torch.tensor([[0], [1], [3]])
        given = {"input:input_ids": ids[:, start:end], "input:positions": positions[:, None], "input:slots": torch.arange(end),
                 "input:where": torch.arange(start, end)[None], "input:features": torch.zeros(2, text.hidden_size),
                 "input:media": torch.full((1, end - start), -1),
                 **{f"cache:{kind}.{i}": layer[place][:, :end] for i, layer in enumerate(cache)
                    for place, kind in enumerate(("keys", "values"))}}
        with torch.no_grad():
            made.append(steps.run("decode" if end - start == 1 else "prefill", given, True))
    return torch.cat(made, 1)


@pytest.mark.parametrize(("family", "target"), [
    *(("glm4v", target) for target in ELSEWHERE), ("glm4v_moe", "npu:ascend910b"),
    pytest.param("glm4v_moe", "cuda:sm_90", marks=pytest.mark.slow)])
def test_the_text_program_gives_the_cpus_logits(family, target):
    here, there = found_for(family, "fx"), found_for(family, target)
    assert not there.refused, "the packed form was not taken"
    wanted = logits(here)
    with ELSEWHERE[target]():
        found = logits(there)
    assert wanted.shape[:2] == (1, CACHED)
    assert float((found - wanted).abs().max()) <= 1e-4
    assert float(wanted.abs().max()) > 0.1


def test_the_rows_matter(monkeypatch):
    here = found_for("glm4v", "fx")
    before = logits(here)
    monkeypatch.setitem(globals(), "POSITIONS", POSITIONS[[0, 0, 0]])
    assert float((logits(here) - before).abs().max()) > 1e-3
