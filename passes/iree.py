"""A region's MLIR to one module of IREE's virtual machine, for this machine's CPU.

The text needs none of these flags; they are how it becomes fast. IREE's own kernels of a product know no panels of 32 outputs,
so its compiler makes the loops, with tiles as large as a core's second cache.
"""

from __future__ import annotations

import re
from pathlib import Path

from iree import compiler

from glmc.errors import InternalError
from glmc.program import Region

FLAGS = ("--iree-llvmcpu-target-cpu=host", "--iree-llvmcpu-enable-ukernels=none", "--iree-llvmcpu-matmul-tile-bytes=1048576")


def compile_text(text: str, out: Path) -> None:
    """Compile an MLIR module to the file `out`. Raises InternalError with the compiler's words."""
    try:
        made = compiler.compile_str(text, target_backends=["llvm-cpu"], extra_args=list(FLAGS))
    except compiler.CompilerToolError as fault:
        raise InternalError("IREE cannot compile a region", found=str(fault)) from fault
    out.write_bytes(made)


def owning(text: str, region: Region) -> str:
    """The text with the region's caches given away by the caller: they are written in place, never copied."""
    for name, role, _ in region.inputs:
        if role == "cache":
            text = re.sub(rf"(%{name}: tensor<[^>]*>)", r"\1 {iree.abi.consume}", text, count=1)
    return text
