"""A strict pass over a safetensors header: the library takes duplicate names and hostile shapes, this does not.

No torch here, and no tensor bytes are read.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmc.checkpoint.regular_file import read_range, regular_file
from glmc.checkpoint.strict_json import parse_json
from glmc.checkpoint.tensor_bytes import BITS
from glmc.errors import DamagedShard, GlmcError

MAX_HEADER_BYTES = 32 << 20  # the largest published MoE in one file would need about 6 MB
MAX_ENTRIES = 200_000
MAX_RANK = 8
MAX_DIM = 1 << 40
MAX_ELEMENTS = 1 << 48  # also bounds a shape that holds a zero beside huge dims
_NAME = re.compile(r"[!-.0-\[\]-~]{1,512}")  # printable ASCII without space, slash and backslash


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies. `dtype` is safetensors' name ("BF16"); `offset` is absolute in `file`; both in bytes."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(path: Any) -> dict[str, TensorInfo]:
    """Every tensor of a safetensors file, in the order of their bytes. Raises DamagedShard, or StorageError."""
    return read_header_and_digest(path)[0]


def read_header_and_digest(path: Any) -> tuple[dict[str, TensorInfo], str]:
    """`read_header`, and the SHA-256 (hex) of the header's bytes with its length. Raises the same."""
    path = Path(path)
    with regular_file(path, error=DamagedShard) as (descriptor, state):
        size = state.st_size
        length = header_length(read_range(descriptor, min(8, size), 0, file=path, error=DamagedShard), size, path)
        raw = read_range(descriptor, 8 + length, 0, file=path, error=DamagedShard)
    return parse_header(raw[8:], size, path), hashlib.sha256(raw).hexdigest()


def header_length(first: bytes, size: int, file: Any, error: type[GlmcError] = DamagedShard) -> int:
    """The header's length in bytes, from the file's first 8 bytes and its size, checked before anything is read."""
    if len(first) < 8:
        raise error("the file is too short to be safetensors", file=file, expected="at least 8 bytes",
                    found=f"{size} bytes")
    length = int.from_bytes(first[:8], "little")
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise error("the header's length is absurd", file=file, field="header length",
                    expected=f"2 to {MAX_HEADER_BYTES} bytes", found=length)
    if 8 + length > size:
        raise error("the file ends inside its header", file=file, expected=f"at least {8 + length} bytes",
                    found=f"{size} bytes")
    return length


def parse_header(header: bytes, size: int, file: Path, error: type[GlmcError] = DamagedShard) -> dict[str, TensorInfo]:
    """Every tensor that `header` (the JSON alone) declares in a file of `size` bytes, in the order of their bytes.

    Checked: JSON without duplicates, names, fields, dtypes, shapes, sizes, and that the data is covered exactly once.
    """
    if header[:1] != b"{":
        raise error("the header does not begin with '{'", file=file, expected="{", found=header[:1])
    if header.count(b"{") > MAX_ENTRIES:  # counted on the text, since a million small objects are already expensive
        raise error("the header has too many entries", file=file, expected=f"at most {MAX_ENTRIES}",
                    found=header.count(b"{"))
    entries = parse_json(header, error=error, file=file)
    _check_metadata(entries.pop("__metadata__", {}), file, error)
    start = 8 + len(header)
    found = [_entry(name, entry, start, file, error) for name, entry in entries.items()]
    found.sort(key=lambda info: (info.offset, info.nbytes))
    end = start
    for info in found:
        if info.offset != end:
            kind = "overlaps the tensor before it" if info.offset < end else "leaves a hole before it"
            raise error(f"a tensor {kind}", file=file, field=info.name, expected=f"begin {end - start}",
                        found=f"begin {info.offset - start}")
        end += info.nbytes
    if end != size:
        raise error("the file is truncated" if end > size else "bytes follow the last tensor", file=file,
                    expected=f"{end} bytes", found=f"{size} bytes")
    return {info.name: info for info in found}


def _check_metadata(metadata: Any, file: Path, error: type[GlmcError]) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise error("the metadata is not a table of texts", file=file, field="__metadata__",
                    expected="an object of strings", found=type(metadata).__name__)


def _whole_numbers(value: Any, limit: int) -> bool:
    # `type(x) is int` and not isinstance: JSON's true would pass as 1.
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= limit for item in value)


def _entry(name: str, entry: Any, start: int, file: Path, error: type[GlmcError]) -> TensorInfo:
    if not _NAME.fullmatch(name) or ".." in name:
        raise error("a tensor's name is not acceptable", file=file, field=name,
                    expected="1 to 512 printable ASCII characters without space, slash, backslash or '..'")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise error("a tensor's entry has other fields", file=file, field=name,
                    expected=["data_offsets", "dtype", "shape"],
                    found=sorted(entry) if isinstance(entry, dict) else type(entry).__name__)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise error("a tensor's dtype is unknown", file=file, field=name, expected=sorted(BITS), found=dtype)
    if not _whole_numbers(shape, MAX_DIM) or len(shape) > MAX_RANK:
        raise error("a tensor's shape is not acceptable", file=file, field=name,
                    expected=f"at most {MAX_RANK} integers from 0 to {MAX_DIM}", found=shape)
    if math.prod(max(dim, 1) for dim in shape) > MAX_ELEMENTS:
        raise error("a tensor's shape is too large", file=file, field=name,
                    expected=f"at most {MAX_ELEMENTS} elements", found=shape)
    if not _whole_numbers(offsets, 1 << 62) or len(offsets) != 2 or offsets[1] < offsets[0]:
        raise error("a tensor's offsets are not acceptable", file=file, field=name,
                    expected="[begin, end] with 0 <= begin <= end", found=offsets)
    bits = math.prod(shape) * BITS[dtype]
    if bits % 8 or offsets[1] - offsets[0] != bits // 8:
        raise error("a tensor's size is not shape times dtype", file=file, field=name,
                    expected=f"{bits / 8:g} bytes for {dtype} {shape}", found=f"{offsets[1] - offsets[0]} bytes")
    return TensorInfo(name, file, dtype, tuple(shape), start + offsets[0], bits // 8)
