"""The weights of an artefact, read and hashed by several threads into memory of the CPU or of a device."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable, Set
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from glmc.artifact_weights import ALIGN
from glmc.checkpoint.safetensors_header import header_length, parse_header
from glmc.checkpoint.tensor_bytes import bytes_of, torch_dtype
from glmc.errors import DamagedArtifact, StorageError

if TYPE_CHECKING:
    import torch

    from glmc.artifact import Artifact

Reader = tuple[int, str, Callable[[], "dict[str, torch.Tensor]"]]  # bytes, file, and what reads its weights


class Memory(Protocol):
    """Where the bytes of one file are put: `whole` uint8 [bytes], on some device."""

    whole: torch.Tensor

    def rooms(self, begin: int, count: int) -> Iterable[memoryview]:
        """Host memory to fill for `count` bytes from `begin` on; each room is full before the next is asked for."""

    def settle(self) -> None:
        """Wait until what was filled is in `whole`."""


Place = Callable[[int, Path], Memory]
"""(bytes, of which file) -> memory for them. Raises StorageError."""


Take = Callable[[str, "torch.Tensor"], "torch.Tensor"]
"""(name, weight) -> what is kept of it."""


def load_shards(artifact: Artifact, threads: int | None, place: Place, others: Iterable[Reader],
                wanted: Set[str] | None = None, take: Take | None = None) -> dict[str, torch.Tensor]:
    """Every tensor of the weight files and of `others`, verified. See `Artifact.load_weights`."""
    own = [(artifact.files[name]["bytes"], name, partial(_load, artifact, name, place)) for name in artifact.shards()
           if wanted is None or wanted & _names(artifact, name)]
    parts: list[Reader] = [*own, *others]
    # The largest first, so that the threads end together.
    order = sorted(range(len(parts)), key=lambda number: -parts[number][0])
    with ThreadPoolExecutor(max(1, min(threads or os.cpu_count() or 1, len(parts) or 1))) as pool:
        loaded = dict(zip(order, pool.map(lambda number: _taken(parts[number][2](), wanted, take), order), strict=True))
    weights: dict[str, torch.Tensor] = {}
    for number, (_, name, _) in enumerate(parts):
        for key, tensor in loaded[number].items():
            if key in weights:
                raise DamagedArtifact("a tensor stands in two weight files", file=artifact.folder / name, field=key)
            weights[key] = tensor
    return weights


def _names(artifact: Artifact, name: str) -> set[str]:
    """The tensors in a weight file by its own header, which is checked only when the file is read."""
    path, size = artifact.folder / name, artifact.files[name]["bytes"]
    with path.open("rb") as file:
        length = header_length(file.read(8), size, path, DamagedArtifact)
        return {*parse_header(file.read(length), size, path, DamagedArtifact)}


def _taken(tensors: dict[str, torch.Tensor], wanted: Set[str] | None, take: Take | None) -> dict[str, torch.Tensor]:
    """What stays of a file's tensors; one after another, so that each piece's memory goes when it is done with."""
    names = [name for name in tensors if wanted is None or name in wanted]
    return {name: tensors.pop(name) if take is None else take(name, tensors.pop(name)) for name in names}


class PrivateMemory:
    """Anonymous memory of our own: page aligned, and in huge pages where the system has them (fewer page faults)."""

    def __init__(self, size: int, path: Path) -> None:
        """`path` is what it is for. Raises StorageError."""
        import torch

        try:
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as fault:
            raise StorageError("there is no memory for the weights", file=path, expected=f"{size} bytes",
                               found=fault.strerror) from fault
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        self._view, self.whole = memoryview(memory), torch.frombuffer(memory, dtype=torch.uint8)

    def rooms(self, begin: int, count: int) -> Iterable[memoryview]:
        """The memory itself."""
        return [self._view[begin:begin + count]]

    def settle(self) -> None:
        """Nothing is on its way."""


def _load(artifact: Artifact, name: str, place: Place) -> dict[str, torch.Tensor]:
    path, size = artifact.folder / name, artifact.files[name]["bytes"]
    if size < 8:
        raise DamagedArtifact("the file is too short to be safetensors", file=path, expected="at least 8 bytes",
                              found=f"{size} bytes")
    memory = place(size, path)
    artifact.read_verified(name, memory.rooms(0, size))
    memory.settle()
    length = header_length(_bytes(memory.whole[:8]), size, path, DamagedArtifact)
    infos = parse_header(_bytes(memory.whole[8:8 + length]), size, path, DamagedArtifact)
    tensors = {}
    for info in infos.values():
        flat = memory.whole[info.offset:info.offset + info.nbytes]
        if info.offset % ALIGN:
            flat = flat.clone()  # torch allocates at 64 bytes
        tensors[info.name] = flat.view(torch_dtype(info.dtype)).view(info.shape)
    return tensors


def _bytes(flat: torch.Tensor) -> bytes:
    return bytes(bytes_of(flat.cpu()))
