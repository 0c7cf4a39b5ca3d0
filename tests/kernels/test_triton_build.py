"""Every Triton kernel is built for every GPU that glmc knows, on a machine that has none: no spills, the right kind of file."""

from __future__ import annotations

import pytest
import torch
import traced

from glmc import kernels
from glmc.errors import UnsupportedTarget
from glmc.kernels import triton
from glmc.passes import declare
from glmc.target import TARGETS

GPUS = {name: target.gpu for name, target in TARGETS.items() if target.gpu is not None}
NAMES = [name for name in declare.names() if kernels.has(name, "triton")]


def launches():
    """One launch of each kernel that some form of a fusion starts, in bfloat16, at sizes like those of a model."""
    sizes = {"H": 1024, "I": 512, "J": 1024, "D": 128, "n": 32, "E": 64, "K": 8, "T": 16}
    known = {}
    for name in NAMES:
        fusion = declare.load(name)
        for pair in range(0, len(fusion.samples), 2):
            maths = traced.unseen(fusion, pair, 1)
            if name in ("rms_norm", "add_rms_norm", "layer_norm", "silu_mul", "moe_experts"):
                maths = declare.Maths(fusion.reference, ({**maths.samples[0], **sizes},))
            tensors = dict(zip(maths.present(0), maths.empty(0, torch.bfloat16), strict=True))
            with triton.noted() as notes, torch.device("meta"):
                kernels.load(name, "triton").run(*(tensors.get(n) for n in maths.tensors), **maths.settings(0, torch.bfloat16))
            for asked in notes:
                known.setdefault(asked.name, asked)
    return list(known.values())


@pytest.fixture(scope="module")
def asked():
    return launches()


def test_no_kernel_is_left_out(asked):
    files = {name for name in kernels.names() if kernels.has(name, "triton")}
    used = {launch.kernel.fn.__module__.split(".")[2] for launch in asked}
    # pick_lanes only stands alone, qk_norm_rope starts the kernel of rope, linear and dequantise are no fusions: they have
    # tests of their own.
    assert used | {"pick_lanes", "qk_norm_rope", "linear", "dequantise"} == files


@pytest.mark.parametrize("gpu", GPUS)
def test_every_kernel_is_built_for(gpu, asked, tmp_path):
    for launch in asked:
        binary, described, used = triton.build(launch, GPUS[gpu], tmp_path)
        assert binary[:4] == b"\x7fELF"
        assert described["name"] == launch.name
        assert used["spilled_bytes"] == 0, launch.name
        assert 0 < used["registers"] <= 512
        assert used["shared_bytes"] <= 96 << 10


def test_what_is_not_aligned_is_another_launch():
    x = torch.empty(4, 33, device="meta", dtype=torch.bfloat16)
    with triton.noted() as notes, torch.device("meta"):
        for rows in (x[:, :32], x[:, 1:]):
            kernels.load("rms_norm", "triton").run(rows, None, eps=1e-5)
    one, other = notes
    assert one.aligned == ("x", "y")
    assert other.aligned == ("y",)
    assert one.digest != other.digest


def test_a_missing_language_is_named(monkeypatch):
    def gone(name):
        raise ModuleNotFoundError("No module named 'triton'", name="triton")

    monkeypatch.setattr(kernels.importlib, "import_module", gone)
    with pytest.raises(UnsupportedTarget, match="not installed"):
        kernels.load("rms_norm", "triton")
