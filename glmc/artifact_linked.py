"""Weights that stay in a file of the checkpoint, which the artefact shares by a hard link; each tensor has its digest.

Other bytes of a linked file are not covered: nothing reads them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmc.artifact import HEX, LINKED, hash_range
from glmc.artifact_load import Place, Reader
from glmc.artifact_weights import ALIGN, even_groups
from glmc.checkpoint.tensor_bytes import BITS, torch_dtype
from glmc.errors import CheckpointChanged, DamagedArtifact

if TYPE_CHECKING:
    import torch

    from glmc.artifact import Artifact
    from glmc.checkpoint.folder import Checkpoint
    from glmc.checkpoint.safetensors_header import TensorInfo

_FIELDS = {"file", "offset", "bytes", "dtype", "shape", "sha256"}
_MAX_RANK = 8


@dataclass(frozen=True, slots=True)
class Linked:
    """One weight: `nbytes` bytes from `offset` of the artefact's file `file`. `dtype` is safetensors' name ("BF16")."""

    name: str
    file: str
    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]
    sha256: str

    def check(self, folder: Path, size: int, rooms: Iterable[memoryview] | None) -> None:
        """Read the weight from its file of `size` bytes into `rooms`, unless that is None, and compare the digest.

        Raises DamagedArtifact naming the weight, StorageError.
        """
        found = hash_range(folder / self.file, size, self.offset, self.nbytes, rooms)
        if found != self.sha256:
            raise DamagedArtifact("a linked tensor differs from its digest", file=folder / self.file, field=self.name,
                                  expected=f"sha256 {self.sha256}", found=f"sha256 {found}",
                                  hint="the file is shared with the checkpoint, which may have been edited in place")


def link_weights(folder: Path, weights: Mapping[str, TensorInfo], checkpoint: Checkpoint,
                 ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Link the shards that hold `weights` into `folder` and read each weight once, for its digest.

    Returns what linked.json holds and the manifest's entries of the linked files. Raises what `Checkpoint.link` raises.
    """
    shards = sorted({info.file for info in weights.values()})
    names = {shard: f"linked-{number:05d}.safetensors" for number, shard in enumerate(shards, 1)}
    sizes = {shard: checkpoint.link(shard, folder / name) for shard, name in names.items()}

    def entry(info: TensorInfo) -> dict[str, Any]:
        try:
            digest = hash_range(folder / names[info.file], sizes[info.file], info.offset, info.nbytes, None)
        except DamagedArtifact as fault:  # nothing is sealed yet: it is the checkpoint that changes
            raise CheckpointChanged("the shard was edited during the compilation", file=info.file, field=info.name,
                                    expected=fault.expected, found=fault.found) from fault
        return {"file": names[info.file], "offset": info.offset, "bytes": info.nbytes, "dtype": info.dtype,
                "shape": list(info.shape), "sha256": digest}

    order = sorted(weights, key=lambda name: (weights[name].file, weights[name].offset))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        entries = dict(zip(order, pool.map(lambda name: entry(weights[name]), order), strict=True))
    return {"weights": entries}, {names[shard]: {"bytes": sizes[shard], "linked": True} for shard in shards}


def read_table(artifact: Artifact) -> tuple[Linked, ...]:
    """What linked.json says, in the order of the files and their bytes. Raises DamagedArtifact where it cannot be so."""
    path, files = artifact.folder / LINKED, artifact.linked_files()
    table = artifact.json(LINKED).get("weights")
    if not isinstance(table, dict):
        raise DamagedArtifact("there is no table of linked weights", file=path, field="weights", found=type(table).__name__)
    wrong = next((name for name, entry in table.items() if not _fits(entry, artifact.files)), None)
    if wrong is not None:
        raise DamagedArtifact("the entry of a linked weight is not acceptable", file=path, field=wrong, found=table[wrong],
                              expected=", ".join(sorted(_FIELDS)))
    found = [Linked(name, e["file"], e["offset"], e["bytes"], e["dtype"], tuple(e["shape"]), e["sha256"])
             for name, e in table.items()]
    if {one.file for one in found} != set(files):
        raise DamagedArtifact("the linked files are not those that hold a weight", file=path, expected=files,
                              found=sorted({one.file for one in found}))
    return tuple(sorted(found, key=lambda one: (one.file, one.offset, one.name)))


def readers(artifact: Artifact, place: Place, wanted: Set[str] | None = None) -> list[Reader]:
    """What reads the linked weights, all or those `wanted`, in runs of neighbours that threads can share.

    Raises what `read_table` raises.
    """
    groups = even_groups([one for one in artifact.linked() if wanted is None or one.name in wanted], lambda one: one.nbytes)
    return [(sum(one.nbytes for one in group), group[0].file, partial(_load, artifact, group, place)) for group in groups]


def summary(artifact: Artifact) -> dict[str, int]:
    """Of the linked files: files, tensors, bytes of those, and other_bytes that belong to none. Raises what `read` raises."""
    covered, end, file = 0, 0, ""
    for one in artifact.linked():
        end = end if one.file == file else 0  # two weights may be one tensor, whose bytes count once
        covered += max(0, one.offset + one.nbytes - max(one.offset, end))
        end, file = max(end, one.offset + one.nbytes), one.file
    files = artifact.linked_files()
    return {"files": len(files), "tensors": len(artifact.linked()), "bytes": covered,
            "other_bytes": sum(artifact.files[name]["bytes"] for name in files) - covered}


def _fits(entry: Any, files: Mapping[str, dict[str, Any]]) -> bool:
    """Whether an entry is whole and lies within its file. Sizes are compared before anything is allocated."""
    if not isinstance(entry, dict) or set(entry) != _FIELDS or not isinstance(entry["shape"], list):
        return False
    numbers = [entry["offset"], entry["bytes"], *entry["shape"]]
    if len(entry["shape"]) > _MAX_RANK or not all(type(number) is int and number >= 0 for number in numbers):
        return False
    if not all(isinstance(entry[key], str) for key in ("file", "dtype", "sha256")) or not HEX.fullmatch(entry["sha256"]):
        return False
    home = files.get(entry["file"], {})
    return ("linked" in home and entry["offset"] + entry["bytes"] <= home["bytes"] and BITS.get(entry["dtype"], 1) % 8 == 0
            and math.prod(entry["shape"]) * BITS[entry["dtype"]] == 8 * entry["bytes"])


def _load(artifact: Artifact, group: list[Linked], place: Place) -> dict[str, torch.Tensor]:
    """The weights of `group`, verified, each at a multiple of 64 bytes of one memory."""
    begins, total = [], 0
    for one in group:
        begins.append(total)
        total += one.nbytes + -one.nbytes % ALIGN
    memory = place(max(total, ALIGN), artifact.folder / group[0].file)
    tensors = {}
    for one, begin in zip(group, begins, strict=True):
        one.check(artifact.folder, artifact.files[one.file]["bytes"], memory.rooms(begin, one.nbytes))
        tensors[one.name] = memory.whole[begin:begin + one.nbytes].view(torch_dtype(one.dtype)).view(one.shape)
    memory.settle()
    return tensors
