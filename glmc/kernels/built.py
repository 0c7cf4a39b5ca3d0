"""What a kernel that Triton built takes and uses, by the text that it was built from and by the tools' own reports."""

from __future__ import annotations

import re
from typing import Any

from glmc.errors import InternalError
from glmc.kernels import driver

_PTX = {"P": "u64", "i": "u32", "q": "u64", "f": "f32"}
"""How `struct` packs a parameter -> its type in PTX."""


def check_plain(kernel: str, parameters: list[str], made: Any) -> None:
    """Raise InternalError unless our launcher packs the parameters, given their Triton types, as this Triton built them, and
    the kernel wants nothing but a grid and shared memory. made: what Triton compiled."""
    told = made.metadata
    special = [name for name in ("global_scratch_size", "profile_scratch_size", "launch_cooperative_grid", "launch_pdl")
               if getattr(told, name, 0)] + ["num_ctas"] * (getattr(told, "num_ctas", 1) != 1)
    wanted = [_PTX[one] for one in driver.format_of(parameters)]
    found = (re.findall(r"\.param \.(\w+)", made.asm["ptx"].partition(f".entry {told.name}(")[2].partition(")")[0])
             if "ptx" in made.asm else wanted)
    if special or found != wanted:
        raise InternalError("Triton builds a kernel that takes more than its parameters", field=kernel, expected=wanted,
                            found=special or found)


def used_on_nvidia(said: str) -> dict[str, int]:
    """Registers a thread and bytes spilled, by what the assembler said when it made the binary."""
    registers, stores, loads = (_count(rf"{before}(\d+) {after}", said) for before, after in
                                (("Used ", "registers"), ("", "bytes spill stores"), ("", "bytes spill loads")))
    return {"registers": registers, "spilled_bytes": stores + loads}


def used_on_amd(assembly: str) -> dict[str, int]:
    """Vector registers and bytes spilled (a register is four), by the assembler's own notes."""
    registers, vector, scalar = (_count(rf"\.{word}:\s*(\d+)", assembly) for word in
                                 ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count"))
    return {"registers": registers, "spilled_bytes": 4 * (vector + scalar)}


def _count(pattern: str, report: str) -> int:
    """The number that a tool's report gives. Raises InternalError where it does not say."""
    found = re.search(pattern, report)
    if found is None:
        raise InternalError("a tool of Triton reports otherwise than it did", expected=pattern, found=report[-400:])
    return int(found[1])
