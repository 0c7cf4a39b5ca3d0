"""Every Triton kernel is built for every GPU that glmc knows, on a machine that has none: no spills, the right kind of file."""

from __future__ import annotations

import pytest
import torch
import traced

from glmc import kernels
from glmc.errors import UnsupportedTarget
from glmc.kernels import triton
from glmc.passes import ahead, declare
from glmc.target import TARGETS

GPUS = {name: target.gpu for name, target in TARGETS.items() if target.gpu is not None}
NAMES = [name for name in declare.names() if kernels.has(name, "triton")]


GLM_5 = {"B": 2, "S": 1, "L": 4096, "H": 64, "N": 192, "E": 64, "R": 512, "M": 64 * (192 + 256), "C": 2048, "scale": 0.0625}
PUBLISHED = {
    "latent_attention": (GLM_5, {**GLM_5, "H": 20, "M": 20 * (192 + 256), "chosen": None}),
    "attention": tuple({"B": 2, "H": heads, "K": kv, "S": tokens, "L": 512, "D": wide, "V": wide, "scale": 0.1}
                       for heads, kv, wide in ((96, 8, 128), (8, 8, 256)) for tokens in (1, 300)),
    "lightning_indexer": ({**GLM_5, "H": 32, "D": 128, "top": 2048, "head_scale": 0.25},),
}
"""Fusion -> sizes of GLM-4-9B, GLM-4.5, GLM-5 and GLM-4.7-Flash, and wider and narrower heads."""


def tried(name):
    """The maths of a fusion at sizes like those of a model."""
    fusion, sizes = declare.load(name), {"H": 1024, "I": 512, "J": 1024, "D": 128, "n": 32, "E": 64, "K": 8, "T": 16}
    if name in PUBLISHED:
        return [declare.Maths(fusion.reference, (sample,)) for sample in PUBLISHED[name]]
    made = [traced.unseen(fusion, pair, 1) for pair in range(0, len(fusion.samples), 2)]
    if name in ("rms_norm", "add_rms_norm", "layer_norm", "silu_mul", "moe_experts"):
        return [declare.Maths(fusion.reference, ({**maths.samples[0], **sizes},)) for maths in made]
    return made


def launches():
    """One launch of each kernel that a fusion starts, in bfloat16; of fusions that a model fixes, each distinct one."""
    known = {}
    for name in NAMES:
        for maths in tried(name):
            tensors = dict(zip(maths.present(0), maths.empty(0, torch.bfloat16), strict=True))
            with triton.noted() as notes, torch.device("meta"):
                kernels.load(name, "triton").run(*(tensors.get(n) for n in maths.tensors), **maths.settings(0, torch.bfloat16))
            for asked in notes:
                known.setdefault(asked.constants if name in PUBLISHED else asked.name, asked)
    return list(known.values())


@pytest.fixture(scope="module")
def asked():
    return launches()


def test_no_kernel_is_left_out(asked):
    files = {name for name in kernels.names() if kernels.has(name, "triton")}
    used = {launch.kernel.fn.__module__.split(".")[2] for launch in asked}
    # pick_lanes only stands alone, qk_norm_rope starts the kernel of rope, linear, dequantise and sample are no fusions: they
    # have tests of their own. The last three are torch's own steps and start nothing of ours.
    others = {"pick_lanes", "qk_norm_rope", "linear", "dequantise", "sample"}
    assert used | others | {"attention_packed", "place_media", "position_table"} == files


@pytest.mark.parametrize("gpu", GPUS)
def test_every_kernel_is_built_for(gpu, asked, tmp_path):
    for launch in asked:
        binary, described, used = triton.build(launch, GPUS[gpu], tmp_path)
        assert binary[:4] == b"\x7fELF"
        assert described["name"] == launch.name
        assert used["spilled_bytes"] == 0, launch.name
        assert 0 < used["registers"] <= 512
        assert used["shared_bytes"] <= (112 << 10 if gpu.startswith("cuda") else 64 << 10), launch.name


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


def test_a_kernel_is_built_once_where_a_cache_is_given(tmp_path, monkeypatch):
    x = torch.empty(4, 32, device="meta", dtype=torch.bfloat16)
    monkeypatch.setenv("GLMC_CACHE", str(tmp_path / "kept"))
    real, built = triton.build, []
    monkeypatch.setattr(triton, "build", lambda asked, gpu, folder: built.append(gpu) or real(asked, gpu, folder))

    def files(gpu):
        (tmp_path / f"out{len(built)}").mkdir(exist_ok=True)
        (asked,) = noted
        description, binary, used = ahead._built(asked, gpu, tmp_path / f"out{len(built)}")
        return description.read_bytes(), binary.read_bytes(), used

    with triton.noted() as noted, torch.device("meta"):
        kernels.load("rms_norm", "triton").run(x, None, eps=1e-5)
    first = files(GPUS["cuda:sm_90"])
    assert first[2]["registers"] > 0
    assert files(GPUS["cuda:sm_90"]) == first
    assert len(built) == 1
    assert files(GPUS["cuda:sm_80"])[1] != first[1]
    assert built == [GPUS["cuda:sm_90"], GPUS["cuda:sm_80"]]
    monkeypatch.delenv("GLMC_CACHE")
    assert files(GPUS["cuda:sm_90"])[2] == first[2]
    assert len(built) == 3
    assert not list(tmp_path.rglob(".passing-*"))
