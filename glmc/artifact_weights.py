"""The weights of an artefact: safetensors shards laid out for alignment, hashed while written."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from glmc.checkpoint.regular_file import read_into
from glmc.checkpoint.tensor_bytes import BITS, bytes_of, dtype_name
from glmc.errors import InternalError

if TYPE_CHECKING:
    import torch

ALIGN = 64  # bytes: a cache line, and what the compiled code may assume of a weight
SHARD_BYTES = 128 << 20
_WRITE = 1 << 30  # bytes a call; Linux writes at most 2 GiB at once

_SPLIT = 16 << 20  # bytes: fewer are read in one piece sooner than in two

Layout = Iterable[tuple[str, str, tuple[int, ...]]]
Item = tuple[str, str, tuple[int, ...], int]  # name, dtype, shape, bytes
Thing = TypeVar("Thing")


@dataclass
class Shard:
    """One file to be: its header, where each tensor begins (absolute, bytes), and how far it was written and hashed."""

    file: str
    header: bytes
    begins: dict[str, int]
    total: int
    descriptor: int = -1
    waiting: dict[int, int] = field(default_factory=dict)  # begin to nbytes: written, not hashed yet
    hashed: int = 0
    digest: Any = field(default_factory=hashlib.sha256)


def plan_shards(layout: Layout, shard_bytes: int = SHARD_BYTES) -> list[Shard]:
    """Cut `layout` (name, dtype, shape) into shards of at most `shard_bytes`; a larger tensor is alone in its shard.

    The shards come out nearly equal and even in number, so that two threads end their reading together. The data begins
    at a multiple of 64 bytes, and the tensors whose size is a multiple of 64 come first, so that they and the first of
    the others are aligned. Raises InternalError for an unknown dtype or a name given twice.
    """
    items: list[Item] = []
    for name, dtype, shape in layout:
        if dtype not in BITS or BITS[dtype] % 8:
            raise InternalError("the layout of the weights has an unknown dtype", field=name, found=dtype)
        items.append((name, dtype, tuple(shape), math.prod(shape) * BITS[dtype] // 8))
    if len({item[0] for item in items}) != len(items):
        raise InternalError("the layout of the weights names a tensor twice", found=[item[0] for item in items])
    groups = even_groups(items, lambda item: item[3], shard_bytes)
    return [_shard(f"weights-{number:05d}.safetensors", group) for number, group in enumerate(groups, 1)]


def even_groups(items: Sequence[Thing], size: Callable[[Thing], int], most: int = SHARD_BYTES) -> list[list[Thing]]:
    """`items` in runs of at most `most` bytes, nearly equal and even in number; a larger item is alone."""
    total = sum(map(size, items))
    share = total / (2 * math.ceil(total / (2 * most)) or 1) if total > _SPLIT else most
    groups: list[list[Thing]] = []
    filled = 0
    for item in items:
        if not groups or filled >= share or filled + size(item) > most:
            groups.append([])
            filled = 0
        groups[-1].append(item)
        filled += size(item)
    return groups


def _shard(file: str, group: list[Item]) -> Shard:
    group = sorted(group, key=lambda item: item[3] % ALIGN != 0)
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at, begins = 0, {}
    for name, dtype, shape, nbytes in group:
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + nbytes]}
        begins[name] = at
        at += nbytes
    text = json.dumps(entries, separators=(",", ":")).encode("ascii")
    text += b" " * (-(8 + len(text)) % ALIGN)
    start = 8 + len(text)
    header = len(text).to_bytes(8, "little") + text
    return Shard(file, header, {name: start + begin for name, begin in begins.items()}, start + at)


class WeightWriter:
    """Writes the planned shards into `folder`; `write` takes the tensors in the layout's order, or in any other. Their pieces
    come one after another.

    Bytes are hashed beside being written, and a full shard is synced while the next is made. After `close`, `.files` holds
    bytes and SHA-256 of each shard. OSErrors pass through to the artefact's writer.
    """

    def __init__(self, folder: Path, layout: Layout, shard_bytes: int = SHARD_BYTES) -> None:
        layout = list(layout)
        self._folder = folder
        self._wanted = {name: (dtype, tuple(shape)) for name, dtype, shape in layout}
        self._shards = plan_shards(layout, shard_bytes)
        self._written: dict[str, int] = {}  # rows of a tensor that came in pieces
        self._home = {name: shard for shard in self._shards for name in shard.begins}
        self._hashing, self._syncing, self._synced = ThreadPoolExecutor(1), ThreadPoolExecutor(1), list[Future]()
        self.files: dict[str, dict[str, object]] = {}

    @property
    def total_bytes(self) -> int:
        """The size of all shards."""
        return sum(shard.total for shard in self._shards)

    @property
    def places(self) -> dict[str, tuple[str, int, int]]:
        """Tensor -> its file, its first byte there, and how many bytes it has."""
        return {name: (shard.file, begin, math.prod(self._wanted[name][1]) * BITS[self._wanted[name][0]] // 8)
                for shard in self._shards for name, begin in shard.begins.items()}

    def write(self, name: str, tensor: torch.Tensor, first: int = 0) -> None:
        """Put one tensor in its place, or its rows from `first` on, which must be the next.

        Raises InternalError when it is not in the layout, differs, or comes twice.
        """
        dtype, shape = dtype_name(tensor.dtype), tuple(tensor.shape)
        wanted, before = self._wanted.get(name), self._written.pop(name, 0)
        rows = first + (shape[0] if shape else 1)
        whole = (wanted[1][0] if wanted[1] else 1) if wanted is not None else 0
        fits = wanted is not None and (dtype, len(shape), shape[1:]) == (wanted[0], len(wanted[1]), wanted[1][1:])
        if not fits or first != before or rows > whole:
            raise InternalError("a weight is not what the layout says, or was written before", field=name, expected=wanted,
                                found=(dtype, shape, first))
        if rows == whole:
            del self._wanted[name]
        else:
            self._written[name] = rows
        shard = self._home[name]
        if shard.descriptor < 0:
            self._begin(shard)
        data = bytes_of(tensor.cpu().contiguous())
        self._put(shard, data, shard.begins[name] + (first * len(data) // shape[0] if first else 0))
        if shard.hashed == shard.total and not any(other in self._wanted for other in shard.begins):
            finish_at, shard.descriptor = shard.descriptor, -1
            self._synced.append(self._syncing.submit(finish, finish_at))
            self.files[shard.file] = {"bytes": shard.total, "sha256": shard.digest.hexdigest()}

    def close(self) -> None:
        """Wait until everything is synced. Raises InternalError when a tensor of the layout was not written."""
        for synced in self._synced:
            synced.result()
        self._end()
        if self._wanted:
            raise InternalError("weights of the layout were never written", expected=sorted(self._wanted))
        if len(self.files) != len(self._shards):
            raise InternalError("a weight file was not finished", expected=[shard.file for shard in self._shards],
                                found=sorted(self.files))

    def abandon(self) -> None:
        """Close the descriptors of unfinished shards, once nothing is synced any more."""
        self._end()
        for shard in self._shards:
            if shard.descriptor >= 0:
                os.close(shard.descriptor)
                shard.descriptor = -1

    def _end(self) -> None:
        self._hashing.shutdown()
        self._syncing.shutdown()

    def _begin(self, shard: Shard) -> None:
        shard.descriptor = create(self._folder / shard.file)
        reserve_file(shard.descriptor, shard.total)
        self._put(shard, memoryview(shard.header), 0)

    def _put(self, shard: Shard, data: memoryview, begin: int) -> None:
        hashing = self._hashing.submit(shard.digest.update, data) if begin == shard.hashed else None
        write_all(shard.descriptor, data, begin)
        if hashing is not None:
            hashing.result()
            shard.hashed += len(data)
        elif len(data):  # out of the file's order: hashed when its turn comes, from the file
            shard.waiting[begin] = len(data)
        while shard.hashed in shard.waiting:
            self._catch_up(shard, shard.waiting.pop(shard.hashed))

    def _catch_up(self, shard: Shard, nbytes: int) -> None:
        reader = os.open(self._folder / shard.file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            piece = memoryview(bytearray(min(nbytes, 1 << 20)))
            stop = shard.hashed + nbytes
            while shard.hashed < stop:
                part = piece[:stop - shard.hashed]
                read_into(reader, part, shard.hashed, file=shard.file, error=InternalError)
                shard.digest.update(part)
                shard.hashed += len(part)
        finally:
            os.close(reader)


def create(path: Path) -> int:
    """A new file, read-only for everyone but this descriptor."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o444)


def reserve_file(descriptor: int, total: int) -> None:
    """Have the file system promise `total` bytes, so that a full disk shows here and not in the middle."""
    if total:
        os.posix_fallocate(descriptor, 0, total)


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Every byte of `data` at `offset`."""
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:done + _WRITE], offset + done)


def finish(descriptor: int) -> None:
    """Sync and close; the descriptor is closed also when syncing fails, and nothing is tried again."""
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
