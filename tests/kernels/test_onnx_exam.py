"""Every kernel for ONNX in every form, proved by ONNX Runtime against float64; and RoPE against the standard's evaluator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import traced
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from proving import captured

from glmc import kernels
from glmc.kernels.rope import cpu
from glmc.kernels.rope import onnx as rope
from glmc.passes import hostile
from glmc.passes.prove import prove
from glmc.target import TARGETS

ONNX = TARGETS["onnx"]
FORMS = [(name, pair) for name, pair, dtype, _ in traced.every() if dtype is torch.float32 and kernels.has(name, "onnx")]
REFUSED = {"rms_norm": "needs a scale", "layer_norm": "needs a scale", "rope": "RotaryEmbedding"}


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch):
    monkeypatch.setattr(hostile, "_ROWS", 2048)


@pytest.mark.parametrize(("name", "pair"), list(dict.fromkeys(FORMS)))
def test_every_kernel_is_proved_in_every_form_that_it_takes(name, pair):
    (one,) = captured(name, pair)
    site = {k: (d, tuple(s)) for k, (d, s) in one.shapes.items()} | one.scalars
    reason = kernels.load(name, "onnx").accepts(site)
    if reason is not None:
        assert REFUSED[name] in reason
        return
    (proof,) = prove([one], ONNX)
    assert proof.kernel_error < 0.05


def test_bfloat16_is_refused():
    (one,) = captured("silu_mul", 0, torch.bfloat16)
    assert "float32" in kernels.load("silu_mul", "onnx").accepts({k: (d, tuple(s)) for k, (d, s) in one.shapes.items()})


@pytest.mark.parametrize("turn", [-1, -2], ids=["pairs", "halves"])
@pytest.mark.parametrize(("width", "lanes"), [(16, 8), (16, 4), (14, 3), (14, 7)])
def test_the_standard_and_the_runtime_turn_as_glmc_does(turn, width, lanes):
    """RotaryEmbedding of three-dimensional caches: full and partial width, lanes in pairs and in halves."""
    draw = torch.Generator().manual_seed(width + lanes)
    x = torch.randn(2, 5, 3, width, generator=draw)
    cos, sin = (torch.randn(2, 5, lanes, generator=draw) for _ in range(2))
    wanted = cpu.run(x, cos, sin, read=turn, write=turn)
    assert (rope.run(x, cos, sin, read=turn, write=turn) - wanted).abs().max() < 1e-6
    shapes = {"x": [2, 5, 3 * width], "cos": [2, 5, lanes], "sin": [2, 5, lanes]}
    node = helper.make_node("RotaryEmbedding", ["x", "cos", "sin"], ["y"], num_heads=3, interleaved=int(turn == -1),
                            **({"rotary_embedding_dim": 2 * lanes} if 2 * lanes < width else {}))
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, shapes["x"])
    model = helper.make_model(helper.make_graph([node], "one", inputs, [output]), opset_imports=[helper.make_opsetid("", 23)])
    given = {"x": x.reshape(shapes["x"]).numpy(), "cos": cos.numpy(), "sin": sin.numpy()}
    (told,) = ReferenceEvaluator(model).run(None, given)
    assert np.abs(told.reshape(x.shape) - wanted.numpy()).max() < 1e-6


def test_the_norm_keeps_its_eps():
    run = kernels.load("rms_norm", "onnx").run
    x, weight = torch.full((1, 2, 8), 1e-4), torch.ones(8)
    for eps in (1e-5, 1e-8, 0.5):
        wanted = x / torch.sqrt(x.double().square().mean(-1, keepdim=True) + eps)
        assert (run(x, weight, eps=eps) - wanted).abs().max() < 1e-6
