"""Kernels that were built ahead are started through the driver with what Triton's own launcher would give it."""

from __future__ import annotations

import ctypes
import json

import pytest
import torch

from glmc import kernels
from glmc.errors import IncompatibleArtifact
from glmc.kernels import cubin, triton


class Driver:
    """Notes every call, and reads a launch's parameters as a kernel would."""

    def __init__(self, kinds, refuse=None):
        self.kinds, self.refuse, self.launches, self.shared = kinds, refuse, [], None

    def _status(self, name):
        return 209 if name == self.refuse else 0

    def cuModuleLoadData(self, module, data):
        self.data = data
        return self._status("load")

    def cuModuleGetFunction(self, function, module, name):
        self.name = name
        return self._status("find")

    def cuFuncSetAttribute(self, function, attribute, value):
        self.shared = (attribute, value)
        return self._status("shared")

    def cuGetErrorString(self, status, said):
        ctypes.cast(said, ctypes.POINTER(ctypes.c_char_p))[0] = b"no kernel image is available"
        return 0

    def cuLaunchKernel(self, function, *rest):
        *shape, stream, places, extra = rest
        values = [ctypes.cast(place, ctypes.POINTER(kind))[0] for place, kind in zip(places, self.kinds, strict=False)]
        hidden = [ctypes.cast(place, ctypes.POINTER(ctypes.c_uint64))[0] for place in list(places)[len(self.kinds):]]
        self.launches.append((shape, stream.value, values, hidden, extra))
        return self._status("start")


def opened(tmp_path, monkeypatch, signature, kinds, shared=0, refuse=None):
    fake = Driver(kinds, refuse)
    monkeypatch.setattr(cubin, "driver", lambda: fake)
    (tmp_path / "k.cubin").write_bytes(b"\x7fELF")
    (tmp_path / "k.json").write_text(json.dumps({"name": "a_kernel", "num_warps": 4, "shared": shared}))
    return fake, cubin.Cubin(tmp_path / "k.cubin", tmp_path / "k.json", signature)


def test_addresses_and_numbers_arrive_as_they_are(tmp_path, monkeypatch):
    kinds = [ctypes.c_uint64, ctypes.c_int32, ctypes.c_float]
    fake, kernel = opened(tmp_path, monkeypatch, ["*bf16", "constexpr", "i32", "fp32"], kinds)
    kernel((7, 2, 1), 99, [1 << 45, -3, 0.5])
    assert fake.name == b"a_kernel"
    assert fake.data == b"\x7fELF"
    assert fake.launches == [([7, 2, 1, 128, 1, 1, 0], 99, [1 << 45, -3, 0.5], [0, 0], None)]
    assert fake.shared is None
    with pytest.raises(ValueError, match="shorter"):
        kernel((1, 1, 1), 0, [1, 2])


def test_much_shared_memory_is_asked_for(tmp_path, monkeypatch):
    fake, _ = opened(tmp_path, monkeypatch, [], [], shared=80_000)
    assert fake.shared == (8, 80_000)


@pytest.mark.parametrize(("refuse", "text"), [("load", "load the kernel"), ("find", "find"), ("start", "start")])
def test_what_the_driver_refuses_is_told(tmp_path, monkeypatch, refuse, text):
    with pytest.raises(IncompatibleArtifact, match=text) as caught:  # noqa: PT012
        _, kernel = opened(tmp_path, monkeypatch, [], [], refuse=refuse)
        kernel((1, 1, 1), 0, [])
    assert "no kernel image" in str(caught.value)


def test_a_machine_without_a_driver_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a driver here")
    cubin.driver.cache_clear()
    with pytest.raises(IncompatibleArtifact, match="no NVIDIA driver"):
        cubin.driver()


def test_a_launch_gives_a_kernel_its_parameters_in_order(monkeypatch, tmp_path):
    """From the host code of a kernel to the driver, with tensors whose address is known."""
    x, weight = torch.randn(6, 32, dtype=torch.bfloat16), torch.randn(32, dtype=torch.bfloat16)
    kinds = [*[ctypes.c_uint64] * 3, ctypes.c_int32, ctypes.c_float]
    fake = Driver(kinds)
    monkeypatch.setattr(cubin, "driver", lambda: fake)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: type("Stream", (), {"cuda_stream": 5}))
    (tmp_path / "k.json").write_text(json.dumps({"name": "rms_norm_kernel", "num_warps": 4, "shared": 16}))
    (tmp_path / "k.cubin").write_bytes(b"")
    with triton.noted() as notes:
        kernels.load("rms_norm", "triton").run(x, weight, eps=0.25)
    (asked,) = notes
    start = triton._ready_from(asked, tmp_path / "k.json", tmp_path / "k.cubin")
    given = {"x": x, "weight": weight, "y": x, "rows": 6, "eps": 0.25} | dict(asked.constants)
    start((3, 1, 1), [given[name] for name in asked.kernel.arg_names])
    values = [x.data_ptr(), weight.data_ptr(), x.data_ptr(), 6, 0.25]
    assert fake.launches == [([3, 1, 1, 128, 1, 1, 16], 5, values, [0, 0], None)]
