"""Whether an artefact for a GPU runs on a machine, told by loading, `inspect` and `doctor`, on a machine that has none."""

from __future__ import annotations

import functools
import json
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import models
import pytest
import torch
from elsewhere import changed, made, pretend
from typer.testing import CliRunner

import glmc
from glmc.cli.main import app
from glmc.errors import DamagedArtifact, IncompatibleArtifact, UsageError
from glmc.kernels import triton
from glmc.program import KERNELS
from glmc.runtime.device import open_device
from glmc.runtime.memory import Cache, cache_bytes
from glmc.runtime.opened import read_programs
from glmc.runtime.sealed import Sealed
from glmc.runtime.verdict import verdict
from glmc.target import TARGETS


@pytest.fixture(scope="module")
def gpu():
    """A dense layer for a GPU."""
    return made("glm4", "cuda:sm_90", num_hidden_layers=1)


def test_a_machine_without_the_device_gets_a_direction(gpu):
    _, _, artifact = gpu
    with pytest.raises(IncompatibleArtifact, match="no such GPU here") as fault:
        glmc.load(artifact.folder)
    assert "triton-interpreted" in fault.value.hint
    _, _, other = made("glm4", "npu:ascend910b")
    with pytest.raises(IncompatibleArtifact, match="torch_npu") as fault:
        glmc.load(other.folder)
    assert "npu-emulated" in fault.value.hint


@pytest.mark.parametrize("device", ["npu", "cpu", "npu-emulated", "cuda:x", "gpu"])
def test_a_device_that_the_target_does_not_have_is_refused(gpu, device):
    _, _, artifact = gpu
    with pytest.raises(UsageError, match="not compiled for this device"):
        glmc.load(artifact.folder, device=device)


def test_a_target_of_another_version_is_told_as_such(gpu):
    _, _, artifact = gpu
    for name in ("vulkan", "abacus"):
        other = SimpleNamespace(folder=artifact.folder, manifest={**artifact.manifest, "target": name})
        with pytest.raises(IncompatibleArtifact, match="does not run") as fault:
            open_device(other, None)
        assert fault.value.exit == 4


@pytest.fixture
def h100(monkeypatch):
    """torch's word for a GPU that is not here: `h100(cuda, free, arch)`."""
    return functools.partial(pretend, monkeypatch)


def test_another_gpu_is_told_what_to_do(gpu, h100):
    _, _, artifact = gpu
    for arch, hint in (((8, 0), "--target cuda:sm_80"), ((7, 5), "no target of glmc")):
        h100(arch=arch)
        with pytest.raises(IncompatibleArtifact, match="another GPU") as fault:
            glmc.load(artifact.folder)
        assert hint in fault.value.hint
    h100(free=1000)
    with pytest.raises(IncompatibleArtifact, match="do not fit") as fault:
        glmc.load(artifact.folder)
    assert fault.value.found == "1000 bytes"


def test_room_is_for_weights_and_cache(gpu, h100):
    _, _, artifact = gpu
    cache = Cache(read_programs(artifact)["text"], 2, models.MAX_LEN, torch.device("meta"))
    held = sum(t.numel() * t.element_size() for t in cache.whole.values())
    assert cache_bytes(read_programs(artifact)["text"], artifact.manifest) == held > 0
    h100(free=artifact.weight_bytes() + held - 1)
    with pytest.raises(IncompatibleArtifact, match="do not fit"):
        glmc.load(artifact.folder)
    h100(free=artifact.weight_bytes() + held)
    assert verdict(artifact, read_programs(artifact)["text"]).text() == "runs"


def test_the_verdict_before_any_weight_is_read(gpu, h100, monkeypatch):
    _, _, artifact = gpu
    program = read_programs(artifact)["text"]
    monkeypatch.setattr("glmc.runtime.device.Staging", lambda *_: pytest.fail("weights were read"))
    assert verdict(artifact, program).text().startswith("refused: torch sees no such GPU here; expected cuda:sm_90")
    assert verdict(artifact, program, "triton-interpreted").text() == "runs"
    h100()
    assert verdict(artifact, program).text() == "runs"
    made_by = int(artifact.json(KERNELS)["cuda"].partition(".")[0])
    h100(cuda=(made_by, 0))
    assert verdict(artifact, program).text() == "runs"
    h100(cuda=(made_by - 1, 8))
    told = verdict(artifact, program)
    assert "driver is older" in told.because
    assert f"found CUDA {made_by - 1}.8" in told.because
    h100()
    real = triton.source_of
    monkeypatch.setattr(triton, "source_of", lambda kernel: None if kernel.endswith("rope_kernel") else real(kernel))
    told = verdict(artifact, program).text()
    assert told == "runs after a rebuild of these kernels: split_qkv_norm_rope_kernel"
    with pytest.warns(UserWarning, match=told), pytest.raises(pytest.fail.Exception, match="weights were read"):
        glmc.load(artifact.folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Sealed(artifact).find("0" * 16, "split_qkv_norm_rope_kernel") is None, "it was told already"


@pytest.mark.parametrize("device", ["cuda:1", "cuda:7"])
def test_a_gpu_that_is_not_there_is_refused_by_its_number(gpu, h100, device):
    _, _, artifact = gpu
    h100()
    with pytest.raises(IncompatibleArtifact, match="no such GPU here") as fault:
        glmc.load(artifact.folder, device=device)
    assert fault.value.found.startswith("1 GPUs")
    assert verdict(artifact, read_programs(artifact)["text"], device).text().startswith("refused: torch sees no such GPU")


@pytest.mark.parametrize("ending", ["cubin", "json"])
@pytest.mark.parametrize("change", [lambda data: data[:len(data) // 2], lambda data: data[:-1] + bytes([data[-1] ^ 1])],
                         ids=["truncated", "a bit"])
def test_a_damaged_kernel_is_found_before_any_weight_is_read(gpu, h100, monkeypatch, tmp_path, ending, change):
    _, _, artifact = gpu
    h100()
    monkeypatch.setattr("glmc.runtime.device.Staging", lambda *_: pytest.fail("weights were read"))
    name = f"kernels/{artifact.json(KERNELS)['kernels'][0]['name']}.{ending}"
    folder = changed(artifact, tmp_path / "x.glmc", name, change(artifact.read(name)), sealed=False)
    with pytest.raises(DamagedArtifact, match=Path(name).name):
        glmc.load(folder)


def inspected(artifact):
    done = CliRunner().invoke(app, ["inspect", str(artifact.folder), "--json"])
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)["here"]


def test_inspect_gives_the_verdict(gpu, h100, monkeypatch):
    _, _, artifact = gpu
    assert inspected(artifact).startswith("refused: torch sees no such GPU here; expected cuda:sm_90; found 0 GPUs")
    h100()
    assert inspected(artifact) == "runs"
    h100(arch=(8, 0))
    assert inspected(artifact) == ("refused: the artefact was compiled for another GPU; expected cuda:sm_80; found cuda:sm_90; "
                                   "compile it again with --target cuda:sm_80")
    h100(cuda=(11, 8))
    assert re.fullmatch(r"refused: the NVIDIA driver is older than the artefact's kernels; expected CUDA \d+\.0 or newer; "
                        "found CUDA 11.8; install a newer driver", inspected(artifact))
    h100(free=7)
    assert re.fullmatch(r"refused: weights and cache do not fit the device's free memory; expected \d+ bytes of weights and "
                        r"\d+ bytes of cache; found 7 bytes; free memory there, or compile a smaller .*", inspected(artifact))
    h100()
    monkeypatch.setattr(triton, "source_of", lambda kernel: None)
    told = inspected(artifact)
    assert told.startswith("runs after a rebuild of these kernels: ")
    assert set(told.partition(": ")[2].split(", ")) == {k["name"].rpartition("-")[0] for k in artifact.json(KERNELS)["kernels"]}


def doctor():
    return json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)


def test_doctor_gives_the_verdict_of_each_gpu_target(h100):
    def here():
        return {name: said["here"] for name, said in doctor()["targets"].items() if "here" in said}

    assert set(here()) == {name for name, target in TARGETS.items() if target.gpu}
    h100(free=7)
    assert doctor()["gpus"] == [{"name": "NVIDIA H100", "target": "cuda:sm_90", "free_bytes": 7, "total_bytes": 80 << 30}]
    assert here()["cuda:sm_90"] == "runs"
    assert here()["cuda:sm_80"] == "refused: torch sees no such GPU here, but NVIDIA H100, cuda:sm_90"
    h100(cuda=(11, 8))
    assert here()["cuda:sm_90"].startswith("refused: the NVIDIA driver offers CUDA 11.8, kernels that are compiled here need 1")
    assert doctor()["driver_cuda"] == "11.8"
    done = CliRunner().invoke(app, ["doctor"])
    assert "offers CUDA 11.8" in done.stdout
