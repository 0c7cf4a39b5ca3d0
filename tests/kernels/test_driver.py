"""Kernels started by the driver: parameters reach it as the kernel reads them, and what it refuses is told. The driver is a
stand-in that reads its arguments as C would."""

from __future__ import annotations

import ctypes
import json
from types import SimpleNamespace

import pytest
import torch

from glmc import kernels
from glmc.errors import IncompatibleArtifact, InternalError
from glmc.kernels import driver, triton


class Driver:
    """libcuda as far as it is asked. `kinds`: C types of the kernel's parameters; `started`: what each launch was given."""

    def __init__(self, kinds=(), fails=None):
        self.kinds, self.fails, self.started, self.calls = kinds, fails, [], []
        self.context = self.attribute = None

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append(name)
            if name == self.fails:
                return 209
            answer = vars(self).get(f"_{name}") or getattr(type(self), f"_{name}", None)
            if answer is not None:
                answer(*arguments) if f"_{name}" in vars(self) else answer(self, *arguments)
            return 0

        return call

    def _cuGetErrorString(self, status, text):
        text._obj.value = b"no kernel image is available"

    def _cuDriverGetVersion(self, number):
        number._obj.value = 12080

    def _cuCtxGetCurrent(self, current):
        current._obj.value = self.context

    def _cuCtxSetCurrent(self, context):
        self.context = 77

    def _cuModuleLoadData(self, module, binary):
        assert binary == b"\x7fELF\0cubin"
        module._obj.value = 5

    def _cuModuleGetFunction(self, function, module, name):
        assert (module.value, name) == (5, b"some_kernel")
        function._obj.value = 6

    def _cuFuncSetAttribute(self, function, attribute, value):
        self.attribute = function.value, attribute, value

    def _cuLaunchKernel(self, function, x, y, z, threads, one, other, shared, stream, each, extra):
        values = [ctypes.cast(each[n], ctypes.POINTER(kind)).contents.value for n, kind in enumerate(self.kinds)]
        self.started.append((function.value, (x, y, z), (threads, one, other), shared, stream.value, len(each), values))


@pytest.fixture
def stand_in(monkeypatch):
    def use(*given, **named):
        made = Driver(*given, **named)
        monkeypatch.setattr(driver, "_library", lambda: made)
        monkeypatch.setattr(driver, "_THREAD", SimpleNamespace())
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: SimpleNamespace(cuda_stream=1 << 40))
        return made

    return use


TOLD = {"name": "some_kernel", "num_warps": 8, "shared": 1000}
BINARY = b"\x7fELF\0cubin"


def test_parameters_lie_where_c_puts_them(stand_in):
    pointer, number, real, long = ctypes.c_void_p, ctypes.c_int32, ctypes.c_float, ctypes.c_int64
    library = stand_in((pointer, number, pointer, real, number, long, pointer, pointer))
    kernel = driver.Kernel(BINARY, TOLD, ["*bf16", "i32", "*i1", "fp32", "i32", "i64"])
    one, other = torch.zeros(3), torch.zeros(8, dtype=torch.bool)[3:]
    kernel((7, 2, 1), [one, -3, other, 0.5, 2**31 - 1, 2**40])
    kernel((1, 1, 1), [one, 4, other, 1.5, 5, 6])
    assert library.started == [
        (6, (7, 2, 1), (256, 1, 1), 1000, 1 << 40, 8,
         [one.data_ptr(), -3, other.data_ptr(), 0.5, 2**31 - 1, 2**40, None, None]),
        (6, (1, 1, 1), (256, 1, 1), 1000, 1 << 40, 8, [one.data_ptr(), 4, other.data_ptr(), 1.5, 5, 6, None, None])]
    assert library.attribute is None
    assert library.calls.count("cuCtxSetCurrent") == 1, "a thread is given a context where it has none, once"


def test_much_shared_memory_is_asked_for(stand_in):
    library = stand_in()
    library.context = 3
    driver.Kernel(BINARY, {**TOLD, "shared": 90_000}, [])
    assert library.attribute == (6, 8, 90_000)
    assert "cuCtxSetCurrent" not in library.calls, "torch's own context stays"


@pytest.mark.parametrize("step", ["cuModuleLoadData", "cuModuleGetFunction"])
def test_a_binary_that_the_driver_refuses_is_named(stand_in, step):
    stand_in(fails=step)
    with pytest.raises(IncompatibleArtifact, match=rf"{step}: no kernel image is available \(209\)") as fault:
        driver.Kernel(BINARY, TOLD, [])
    assert fault.value.field == "some_kernel"


def test_a_launch_that_fails_is_named(stand_in):
    stand_in(fails="cuLaunchKernel")
    with pytest.raises(InternalError, match="does not start"):
        driver.Kernel(BINARY, TOLD, [])((1, 1, 1), [])


def test_the_drivers_version(stand_in):
    stand_in()
    assert driver.version() == (12, 8)


def launches_of_rms_norm(weight):
    x = torch.empty(4, 64, dtype=torch.bfloat16, device="meta")
    with triton.noted() as notes, torch.device("meta"):
        kernels.load("rms_norm", "triton").run(x, torch.empty(64, dtype=torch.bfloat16) if weight else None, eps=1e-5)
    return list(notes)


@pytest.mark.parametrize("weight", [False, True])
def test_a_sealed_launch_gives_the_kernel_what_its_code_reads(stand_in, tmp_path, weight, monkeypatch):
    """From a kernel's host code through a binary that was built for it to the driver, on tensors that say they are a GPU's."""
    (asked,) = launches_of_rms_norm(weight)
    binary, described, _ = triton.build(asked, ("cuda", 90, 32), tmp_path)
    (tmp_path / "k.cubin").write_bytes(binary)
    (tmp_path / "k.json").write_text(json.dumps(described))
    pointer, number, real = ctypes.c_void_p, ctypes.c_int32, ctypes.c_float
    library = stand_in((*[pointer] * (2 + weight), number, real, pointer, pointer))
    loaded = []
    library._cuModuleLoadData = lambda module, given: loaded.append(given)
    library._cuModuleGetFunction = lambda function, module, name: None
    monkeypatch.setattr(torch.Tensor, "device", property(lambda self: torch.device("cuda", 0)))
    x, scale, y = (torch.zeros(4, 64, dtype=torch.bfloat16) for _ in range(3))
    constants = dict(asked.constants)
    scale = scale[0] if weight else None
    asked_for = []
    with triton.sealed(lambda digest, name: asked_for.append(digest) or (tmp_path / "k.json", tmp_path / "k.cubin"), {}):
        triton.launch(asked.kernel, (4,), x, scale, y, 4, 1e-5, warps=asked.warps, stages=asked.stages,
                      **{k: v for k, v in constants.items() if k != "weight"})
    assert (asked_for, loaded) == ([asked.digest], [binary])
    (started,) = library.started
    assert started[1:3] == ((4, 1, 1), (32 * asked.warps, 1, 1))
    *given, eps, scratch, profile = started[-1]
    assert given == [t.data_ptr() for t in (x, scale, y) if t is not None] + [4]
    assert (eps, scratch, profile) == (pytest.approx(1e-5), None, None)


def test_the_digest_of_a_launch_is_of_its_own_text_and_of_what_it_calls(monkeypatch):
    (asked,) = launches_of_rms_norm(True)
    assert triton.source_of("glmc.kernels.rms_norm.triton.rms_norm_kernel") == asked.facts()["source"]
    assert triton.source_of("glmc.kernels.rms_norm.triton.gone_kernel") is None
    assert triton.source_of("glmc.kernels.gone.triton.rms_norm_kernel") is None
    assert triton.__name__ == "glmc.kernels.triton"
    assert "triton" not in asked.facts()
    before = asked.facts()["source"]
    real = triton.inspect.getsource
    for changed in ("rms_norm_kernel", "scale_of"):
        triton._source.cache_clear()
        monkeypatch.setattr(triton.inspect, "getsource",
                            lambda f, changed=changed: real(f) + "#" * (f.__name__ == changed))
        assert asked.facts()["source"] != before, changed
    monkeypatch.undo()
    triton._source.cache_clear()
