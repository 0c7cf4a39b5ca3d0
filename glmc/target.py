"""What a machine is, as data: its kind, the file of kernels it reads, its bandwidth and what a launch costs.

The figures only rank fusions and draw the roofline of `glmc plan`; a measurement on the machine itself always wins.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from glmc.errors import UnknownName, UnsupportedTarget


@dataclass(frozen=True)
class Target:
    """machine: the file of kernels it reads. bandwidth in bytes/s, launch in microseconds a step; `engine` runs regions there.
    gpu: a GPU as Triton names it, its kernels are built ahead.
    flops: dense bfloat16 operations a second, as its makers say; of a CPU a guess. packages: what compiling for it imports,
    which `pip install glmc[EXTRA]` brings. dtypes: what it computes in; the first is taken for a checkpoint in another."""

    name: str
    machine: str
    engine: str
    bandwidth: float
    launch_us: float
    gpu: tuple[str, int | str, int] | None = None
    flops: float = 2e11
    packages: tuple[str, ...] = ()
    extra: str = ""
    dtypes: tuple[str, ...] = ("bfloat16", "float32")

    def lacking(self, *names: str) -> list[str]:
        """The packages that compiling for it imports, or these of them, that are not installed."""
        return [name for name in self.packages if name in (names or self.packages) and not _installed(name)]

    def beside(self) -> Target:
        """Where the parts run that stand beside the text: here, or for a target that is only written for text, engine `fx`."""
        return TARGETS["fx"] if self.extra else self


def _installed(name: str) -> bool:
    """Whether a package can be imported; of a dotted name also what is around it."""
    around = name.rpartition(".")[0]
    return (not around or _installed(around)) and importlib.util.find_spec(name) is not None


TARGETS = {t.name: t for t in (
    Target("cpu", "cpu", "native", 40e9, 2.0),
    Target("cpu:aoti", "cpu", "aoti", 40e9, 2.0),
    Target("fx", "cpu", "fx", 40e9, 5.0),
    Target("cuda:sm_80", "triton", "fx", 1.9e12, 4.0, gpu=("cuda", 80, 32), flops=312e12),
    Target("cuda:sm_90", "triton", "fx", 4.0e12, 4.0, gpu=("cuda", 90, 32), flops=989e12),
    Target("cuda:sm_100", "triton", "fx", 7.5e12, 4.0, gpu=("cuda", 100, 32), flops=2250e12),
    Target("rocm:gfx942", "triton", "fx", 5.0e12, 5.0, gpu=("hip", "gfx942", 64), flops=1307e12),
    Target("npu:ascend910b", "npu", "fx", 1.6e12, 6.0, flops=320e12),
    Target("mlir", "mlir", "mlir", 40e9, 2.0, packages=("torch_mlir",), extra="mlir"),
    Target("mlir:stablehlo", "mlir", "mlir", 40e9, 2.0, packages=("torch_mlir",), extra="mlir"),
    Target("mlir:llvm-cpu", "mlir", "iree", 40e9, 2.0, packages=("torch_mlir", "iree.compiler", "iree.runtime"), extra="mlir",
           dtypes=("float32",)),
    Target("onnx", "onnx", "onnx", 40e9, 2.0, packages=("onnx", "onnxscript", "onnxruntime"), extra="onnx",
           dtypes=("float32",)),
)}


@dataclass(frozen=True)
class Link:
    """Between neighbouring ranks: bytes a second in each direction, and the seconds before the first byte."""

    bandwidth: float
    latency: float


LINKS = {
    "loopback": Link(2e9, 60e-6),
    "ethernet-25g": Link(3.1e9, 30e-6),
    "infiniband-400g": Link(50e9, 5e-6),
    "pcie-5": Link(55e9, 8e-6),
    "nvlink-4": Link(450e9, 4e-6),
    "hccs": Link(196e9, 8e-6),
}
"""Name -> what its makers say it carries; gloo over loopback as measured (bench/results/broadcast.json)."""


def link(name: str) -> Link:
    """The link called `name`. Raises UnknownName."""
    if name not in LINKS:
        raise UnknownName("no link has this name", field="link", found=name, expected=", ".join(LINKS))
    return LINKS[name]


def named(name: str) -> Target:
    """The target called `name`, or the only one of its kind ("npu"). Raises UnknownName."""
    kind = [target for target in TARGETS.values() if target.name.partition(":")[0] == name]
    if name not in TARGETS and len(kind) != 1:
        raise UnknownName("no target has this name" if not kind else "there are several targets of this kind", field="target",
                          found=name, expected=", ".join(t.name for t in kind or TARGETS.values()))
    return TARGETS[name] if name in TARGETS else kind[0]


def compilable(name: str) -> Target:
    """The target called `name`, if this version can compile for it here. Raises UnknownName, UnsupportedTarget."""
    target = named(name)
    if lacking := target.lacking():
        raise UnsupportedTarget("a package that this target is compiled with is not installed", field=name, expected=lacking[0],
                                hint=f"pip install 'glmc[{target.extra}]'")
    return target
