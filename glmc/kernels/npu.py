"""Ascend's vendor modules, and what their ops take as data: read by `accepts`, by the emulation and by `glmc plan`.

A kernel file `npu.py` declares the `Contract` of the vendor's op that it calls, with the page the limits stand on. Sizes that
are only known when the op is called are checked by the vendor.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

from glmc.errors import IncompatibleArtifact
from glmc.kernels import holding

HALVES, FLOATS = (torch.float16, torch.bfloat16), (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Limit:
    """What a size may be: from `least` to `most`, a multiple of `multiple`, and a power of two where `power` says so."""

    least: int = 1
    most: int = 1 << 62
    multiple: int = 1
    power: bool = False

    def broken(self, value: Any) -> str | None:
        """What `value` should have been, or None where it is right or not known yet."""
        if not isinstance(value, int):
            return None
        if not self.least <= value <= self.most:
            return f"{self.least} to {self.most}" if value < self.least or self.least > 1 else f"at most {self.most}"
        if value % self.multiple:
            return f"a multiple of {self.multiple}"
        return "a power of two" if self.power and value & (value - 1) else None


@dataclass(frozen=True)
class Contract:
    """What a vendor's op takes. op: "module.function"; since: the versions that have it; source: where this is written."""

    op: str
    since: str
    source: str
    dtypes: tuple[torch.dtype, ...]
    limits: dict[str, Limit] = field(default_factory=dict)

    def refusal(self, *dtypes: torch.dtype, **sizes: Any) -> str | None:
        """Why the op does not take tensors of these dtypes, which must be one, and of these sizes; None when it does."""
        kinds = list(dict.fromkeys(dtypes))
        if len(kinds) > 1:
            return f"{self.op} takes one dtype, found {' and '.join(map(_name, kinds))}"
        if kinds and kinds[0] not in self.dtypes:
            return f"{self.op} takes {', '.join(map(_name, self.dtypes))}, found {_name(kinds[0])}"
        for name, value in sizes.items():
            wanted = self.limits[name].broken(value)
            if wanted is not None:
                return f"{self.op} takes {name} {wanted}, found {value}"
        return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_EMULATED: ContextVar[bool] = ContextVar("emulated", default=False)


def emulated() -> AbstractContextManager:
    """Meanwhile the vendor's ops are the strict emulation on CPU tensors; see `glmc.kernels.npu_emulated`."""
    return holding(_EMULATED, True)


def vendor(module: str) -> Any:
    """The vendor's module, or its emulation. Raises IncompatibleArtifact that says what is missing."""
    if _EMULATED.get():
        from glmc.kernels import npu_emulated

        return npu_emulated.MODULES[module]
    try:
        return importlib.import_module(module)
    except ImportError as fault:
        raise IncompatibleArtifact("a package of the NPU's vendor is not installed", field=module, found=str(fault),
                                   hint=f"install {module.split('.')[0]} for this CANN; `--device npu-emulated` runs "
                                        "slowly on the CPU, for checking") from fault
