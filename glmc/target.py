"""What a machine is, as data: its kind, the file of kernels it reads, its bandwidth and what a launch costs.

The figures only rank fusions and draw the roofline of `glmc plan`; a measurement on the machine itself always wins.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from glmc.errors import UnknownName, UnsupportedTarget


@dataclass(frozen=True)
class Target:
    """machine: the file of kernels it reads. bandwidth in bytes/s, launch in microseconds a step; `engine` runs regions there,
    or `missing` says why none does. gpu: a GPU as Triton names it, its kernels are built ahead.
    needs: packages of others that it is compiled with, as they are imported; extra: what of glmc brings them.
    dtype: the one that it computes in, None for any.
    flops: dense bfloat16 operations a second, as its makers say; of a CPU a guess."""

    name: str
    machine: str
    engine: str
    bandwidth: float
    launch_us: float
    missing: str | None = None
    gpu: tuple[str, int | str, int] | None = None
    flops: float = 2e11
    needs: tuple[str, ...] = ()
    extra: str | None = None
    dtype: str | None = None

    def lacking(self, *names: str) -> list[str]:
        """Which of its packages are not installed, or which of these of them."""
        return [name for name in self.needs if name in (names or self.needs) and not _installed(name)]

    def check_packages(self) -> None:
        """Raises UnsupportedTarget where a package that it is compiled with is not installed."""
        if lacking := self.lacking():
            raise UnsupportedTarget("a package that the target is compiled with is not installed", field="target",
                                    expected=", ".join(self.needs), found=f"{self.name} without {', '.join(lacking)}",
                                    hint=f"pip install 'glmc[{self.extra}]'")


def _installed(name: str) -> bool:
    """Whether a package can be imported; of a dotted name also what is around it."""
    around = name.rpartition(".")[0]
    return (not around or _installed(around)) and importlib.util.find_spec(name) is not None


_LATER = "the target can be planned for, and is not compiled for by this version"
TARGETS = {t.name: t for t in (
    Target("cpu", "cpu", "native", 40e9, 2.0),
    Target("cpu:aoti", "cpu", "aoti", 40e9, 2.0),
    Target("fx", "cpu", "fx", 40e9, 5.0),
    Target("cuda:sm_80", "triton", "fx", 1.9e12, 4.0, gpu=("cuda", 80, 32), flops=312e12),
    Target("cuda:sm_90", "triton", "fx", 4.0e12, 4.0, gpu=("cuda", 90, 32), flops=989e12),
    Target("cuda:sm_100", "triton", "fx", 7.5e12, 4.0, gpu=("cuda", 100, 32), flops=2250e12),
    Target("rocm:gfx942", "triton", "fx", 5.0e12, 5.0, gpu=("hip", "gfx942", 64), flops=1307e12),
    Target("npu:ascend910b", "npu", "fx", 1.6e12, 6.0, flops=320e12),
    Target("mlir", "mlir", "mlir", 40e9, 2.0, needs=("torch_mlir",), extra="mlir"),
    Target("mlir:stablehlo", "mlir", "mlir", 40e9, 2.0, needs=("torch_mlir",), extra="mlir"),
    Target("mlir:llvm-cpu", "mlir", "iree", 40e9, 2.0, needs=("torch_mlir", "iree.compiler", "iree.runtime"), extra="mlir",
           dtype="float32"),
    Target("onnx", "onnx", "onnx", 40e9, 2.0, _LATER),
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
    if target.missing:
        raise UnsupportedTarget(target.missing, field="target", found=name,
                                expected=", ".join(t.name for t in TARGETS.values() if not t.missing))
    target.check_packages()
    return target
