"""Where an artefact runs, and the verdict whether it can, given before any weight is read.

An artefact for a GPU or NPU runs there, or slowly on the CPU for checking: `triton-interpreted` runs its Triton kernels in
Triton's interpreter, `npu-emulated` its vendor's ops in a strict stand-in. Neither is ever taken unasked.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from glmc import gpu, kernels, machine
from glmc.artifact import Artifact
from glmc.errors import IncompatibleArtifact, UsageError
from glmc.kernels import driver, npu
from glmc.runtime import capture
from glmc.runtime.sealed import Sealed, calling
from glmc.runtime.staging import Staging
from glmc.target import TARGETS, Target

CHECKING = {"triton-interpreted": "triton", "npu-emulated": "npu"}
"""Devices that only check -> the machine whose kernels they run."""
_OWN = {"cpu": "cpu", "mlir": "cpu", "onnx": "cpu", "triton": "cuda", "npu": "npu"}
"""Machine -> its own device's kind."""


@dataclass(frozen=True)
class Device:
    """name: as it was asked for; torch: where tensors live; kernels: the machine whose files regions call.

    calling: entered around every run of a region. record: how its decode steps are recorded, None where they are not.
    staging: what puts weights there while they are read, None for memory of the CPU.
    ahead: it works by itself, so logits stay there, tokens are chosen there, and a step is begun before the host knows the
    token of the last one. stale: kernels that were built ahead and that this version has otherwise.
    """

    name: str
    torch: torch.device
    kernels: str
    calling: Callable[[], AbstractContextManager]
    record: capture.Record | None = None
    staging: Callable[[], Staging] | None = None
    ahead: bool = False
    stale: tuple[str, ...] = ()


def open_device(artifact: Artifact, asked: str | None, cache_bytes: int = 0, weight_bytes: int | None = None) -> Device:
    """The device for an artefact. asked: "cpu", "cuda[:N]", "npu[:N]", one of CHECKING, or None for the target's own.

    cache_bytes: what it needs besides its weights. weight_bytes: of a rank's share, None for all weights.

    Raises UsageError for a device that the target does not have, IncompatibleArtifact where this machine cannot run it.
    """
    manifest = artifact.manifest
    if manifest["target"] not in TARGETS or TARGETS[manifest["target"]].machine not in _OWN:
        raise IncompatibleArtifact("the artefact was compiled for a target that this version does not run",
                                   file=artifact.folder, field="target", found=manifest["target"],
                                   expected=", ".join(n for n, t in TARGETS.items() if t.machine in _OWN))
    target = TARGETS[manifest["target"]]
    if target.engine == "mlir":
        raise IncompatibleArtifact("the artefact is text for other compilers, which nothing here runs", file=artifact.folder,
                                   field="target", found=target.name, hint="compile it with --target mlir:llvm-cpu")
    own, weights = _OWN[target.machine], artifact.weight_bytes() if weight_bytes is None else weight_bytes
    checks = [name for name, checked in CHECKING.items() if checked == target.machine]
    name = asked or own
    if name in checks:
        return Device(name, torch.device("cpu"), target.machine,
                      functools.partial(kernels.checking, target.machine), capture.again)
    kind, _, number = name.partition(":")
    if kind != own or (number and not number.isdigit()) or (number and own == "cpu"):
        raise UsageError("the artefact was not compiled for this device", field="device", found=name,
                         expected=", ".join((own, *checks)), hint=f"it was compiled for {target.name}")
    if own == "cpu":
        _native(manifest, artifact, target)
        return Device("cpu", torch.device("cpu"), "cpu", contextlib.nullcontext)
    if own == "npu":
        place = _npu(artifact, int(number or 0), weights, cache_bytes)
        return Device(name, place, "npu", contextlib.nullcontext, capture.Graphs(npu.vendor("torch_npu").npu, place),
                      functools.partial(Staging, place))
    held = Sealed(artifact)
    place = _gpu(artifact, target, int(number or 0), held.cuda, weights, cache_bytes)
    held.check()
    return Device(name, place, "triton", calling(held, place), capture.Graphs(torch.cuda, place),
                  functools.partial(Staging, place), ahead=True, stale=held.stale)


def of_rank(artifact: Artifact, asked: str | None, number: int) -> str | None:
    """What to ask `open_device` for on rank `number` of a host: a device without a number is the rank's own."""
    target = TARGETS.get(artifact.manifest["target"])
    name = asked or (_OWN.get(target.machine) if target else None)
    return f"{name}:{number}" if name in ("cuda", "npu") else asked


def _native(manifest: dict[str, Any], artifact: Artifact, target: Target) -> None:
    """Native code must meet the CPU it was made for, and the torch or the virtual machine."""
    if lacking := target.lacking("iree.runtime"):
        raise IncompatibleArtifact("a package that runs the artefact is not installed", file=artifact.folder, field="engine",
                                   expected=lacking[0], hint=f"pip install 'glmc[{target.extra}]'")
    if manifest["engine"] not in ("aoti", "iree"):
        return
    if manifest["engine"] == "aoti" and manifest["torch"] != torch.__version__:
        raise IncompatibleArtifact("the artefact was compiled with another torch", file=artifact.folder, field="torch",
                                   expected=torch.__version__, found=manifest["torch"])
    machine.check(manifest["machine"], artifact.folder)


def _gpu(artifact: Artifact, target: Target, number: int, made_by: str | None, weights: int, cache_bytes: int,
         ) -> torch.device:
    """The GPU that torch calls `number`, if it is the target's, its driver is not older than the kernels' assembler (of CUDA
    `made_by`), and it holds the weights and the cache."""
    if not torch.cuda.is_available() or number >= torch.cuda.device_count():
        raise IncompatibleArtifact("torch sees no such GPU here", file=artifact.folder, field="device", expected=target.name,
                                   found=f"{torch.cuda.device_count()} GPUs, torch {torch.__version__}",
                                   hint="run it where the GPU is, compile it again with --target cpu, or check it with "
                                        "--device triton-interpreted")
    found = gpu.name_of(number)
    if found != target.name:
        again = f"compile it again with --target {found}" if found in TARGETS else "no target of glmc is this GPU"
        raise IncompatibleArtifact("the artefact was compiled for another GPU", file=artifact.folder, field="target",
                                   expected=found, found=target.name, hint=again)
    if made_by is not None and driver.version()[0] < int(made_by.partition(".")[0]):
        offered = ".".join(map(str, driver.version()))
        raise IncompatibleArtifact("the NVIDIA driver is older than the artefact's kernels", file=artifact.folder,
                                   field="driver", expected=f"CUDA {made_by.partition('.')[0]}.0 or newer",
                                   found=f"CUDA {offered}", hint="install a newer driver")
    _room(artifact, torch.cuda.mem_get_info(number)[0], weights, cache_bytes)
    return torch.device("cuda", number)


def _npu(artifact: Artifact, number: int, weights: int, cache_bytes: int) -> torch.device:
    """The NPU that torch_npu calls `number`."""
    module = npu.vendor("torch_npu")
    if number >= module.npu.device_count():
        raise IncompatibleArtifact("torch_npu sees no such NPU here", file=artifact.folder, field="device",
                                   found=f"{module.npu.device_count()} NPUs")
    _room(artifact, module.npu.mem_get_info(number)[0], weights, cache_bytes)
    return torch.device("npu", number)


def _room(artifact: Artifact, free: int, weights: int, cache: int) -> None:
    if weights + cache > free:
        raise IncompatibleArtifact("weights and cache do not fit the device's free memory", file=artifact.folder,
                                   field="memory", expected=f"{weights} bytes of weights and {cache} bytes of cache",
                                   found=f"{free} bytes", hint="free memory there, or compile a smaller dtype, --max-len or "
                                                               "--max-batch")

