"""What stands before everything that ranks send each other: a header of fixed size, checked before a byte is allocated.

Two ranks that are not at the same place of the same run have different headers, so that a call left out, another shape or
another dtype is seen before a tensor is used. Pure functions of bytes; `decode` raises nothing but RankError.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from glmc.checkpoint.strict_json import parse_json
from glmc.errors import RankError

MAGIC = b"GLMr"
VERSION = 1
OPS = ("agree", "same", "reduce", "gather", "broadcast", "close")
OK, FAILED = 0, 1
DTYPES = {"uint8": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8,
          "bool": 1, "float8_e4m3fn": 1}
"""Name -> bytes of a value. A dtype's code is its place in this list."""
MAX_DIMS = 8
MAX_BYTES = 1 << 36
"""The most that one tensor, or one broadcast, may hold."""
MAX_TENSORS = 256
STAGE_BYTES = 40

_PLACE = struct.Struct("<4sHBxIQ16s40s")  # magic, version, op, stage's number, sequence, run, stage
_WHAT = struct.Struct("<BBB5x8QQ16s")  # status, dtype, dims, shape, bytes, digest
_END = struct.Struct("<HxxI")  # rank, CRC-32 of all before
PLACE = _PLACE.size
TAG = _PLACE.size + _WHAT.size
"""Bytes that are equal on all ranks when all make the same call."""
HEADER = TAG + _END.size
_ZEROS = bytes(8)
_CODES = {name: code for code, name in enumerate(DTYPES)}
_NAMES = tuple(DTYPES)


class Header(NamedTuple):
    """One call of one rank. number: how many stages it has entered; sequence: how many calls it has made, this one included.

    run: 16 bytes that all ranks of a run share. shape and dtype: of the tensor; length: its bytes, or those of what follows.
    digest: 16 bytes of what follows or is compared, zeros where neither is.
    """

    run: bytes
    stage: str
    number: int
    sequence: int
    op: str
    rank: int
    dtype: str = "uint8"
    shape: tuple[int, ...] = ()
    length: int = 0
    digest: bytes = bytes(16)
    status: int = OK

    def place(self) -> str:
        """Where the rank is, in words."""
        return f"{self.op} in stage {self.stage!r} (stage {self.number}, call {self.sequence})"

    def what(self) -> str:
        """What it brings, in words."""
        told = f"{self.dtype} {list(self.shape)}"
        return told if self.digest == bytes(16) else f"{told} with digest {self.digest.hex()[:12]}"


def encode(header: Header) -> bytes:
    """HEADER bytes. Raises RankError for what `decode` would refuse."""
    stage = header.stage.encode()
    fault = _fault(header)
    if len(stage) > STAGE_BYTES or "\0" in header.stage:
        fault = f"a stage's name of {len(stage)} bytes"
    if fault:
        raise RankError("a message between ranks cannot be written", found=fault)
    shape = (*header.shape, *[0] * (MAX_DIMS - len(header.shape)))
    body = _PLACE.pack(MAGIC, VERSION, OPS.index(header.op), header.number, header.sequence, header.run, stage) + _WHAT.pack(
        header.status, _CODES[header.dtype], len(header.shape), *shape, header.length, header.digest)
    end = struct.pack("<Hxx", header.rank)
    return body + end + struct.pack("<I", zlib.crc32(body + end))


def decode(data: bytes | bytearray | memoryview) -> Header:
    """The header in the first HEADER bytes of `data`, every field within its bounds. Raises RankError."""
    if len(data) < HEADER:
        raise RankError("a message between ranks is too short", expected=f"{HEADER} bytes", found=len(data))
    data = bytes(data[:HEADER])
    rank, crc = _END.unpack_from(data, TAG)
    if zlib.crc32(data[:-4]) != crc or data[:4] != MAGIC:
        raise RankError("the header of a message between ranks is damaged")
    _, version, op, number, sequence, run, stage = _PLACE.unpack_from(data)
    if version != VERSION:
        raise RankError("a rank speaks another version of the protocol", expected=VERSION, found=version)
    status, dtype, dims, *shape, length, digest = _WHAT.unpack_from(data, PLACE)
    if op >= len(OPS) or status > FAILED or dtype >= len(_NAMES) or dims > MAX_DIMS:
        raise RankError("the header of a message between ranks has an unknown code",
                        found=f"op {op}, status {status}, dtype {dtype}, {dims} dims")
    try:
        name = stage.rstrip(b"\0").decode()
    except UnicodeDecodeError:
        raise RankError("the name of a stage is not text", found=stage.hex()) from None
    made = Header(run, name, number, sequence, OPS[op], rank, _NAMES[dtype], tuple(shape[:dims]), length, digest, status)
    unused = data[7:8] + data[PLACE + 3:PLACE + 8] + data[TAG + 2:TAG + 4]
    if "\0" in name or any(shape[dims:]) or unused != _ZEROS:
        raise RankError("the header of a message between ranks is not filled up with zeros")
    if fault := _fault(made):
        raise RankError("the header of a message between ranks is out of bounds", found=fault)
    return made


def _fault(header: Header) -> str | None:
    """What of a header is out of bounds. Sizes are multiplied as Python's integers, which do not wrap."""
    if header.dtype not in DTYPES or header.op not in OPS or header.status not in (OK, FAILED):
        return f"{header.dtype}, {header.op}, {header.status}"
    if len(header.shape) > MAX_DIMS or (header.shape and not 0 <= min(header.shape) <= max(header.shape) <= MAX_BYTES):
        return f"shape {list(header.shape)[:MAX_DIMS + 1]}"
    if not 0 <= header.length <= MAX_BYTES or len(header.digest) != 16 or len(header.run) != 16:
        return f"{header.length} bytes"
    if header.status == OK and header.op != "agree" and math.prod(header.shape) * DTYPES[header.dtype] != header.length:
        if header.shape or header.length:
            return f"{header.length} bytes for {header.dtype} {list(header.shape)}"
    if not (0 <= header.rank < 1 << 16 and 0 <= header.number < 1 << 32 and 0 <= header.sequence < 1 << 64):
        return f"rank {header.rank}, stage {header.number}, call {header.sequence}"
    return None


@dataclass(frozen=True)
class Entry:
    """One named tensor of a broadcast."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype]


def encode_manifest(entries: list[Entry]) -> bytes:
    """Which tensors follow: a count, then of each the length of its name, dtype, dims, name and sizes. Raises RankError."""
    parts = [struct.pack("<H", len(entries))]
    for entry in entries:
        name = entry.name.encode()
        if entry.dtype not in DTYPES or len(entry.shape) > MAX_DIMS or not 0 < len(name) < 256:
            raise RankError("a tensor cannot be sent to other ranks", field=entry.name, found=f"{entry.dtype} {[*entry.shape]}")
        parts.append(struct.pack("<BBB", len(name), _CODES[entry.dtype], len(entry.shape)) + name
                     + struct.pack(f"<{len(entry.shape)}Q", *entry.shape))
    if len({entry.name for entry in entries}) != len(entries) or len(entries) > MAX_TENSORS:
        raise RankError("a broadcast holds too many tensors, or two of one name", found=len(entries))
    if (total := sum(entry.nbytes for entry in entries)) > MAX_BYTES:
        raise RankError("the tensors of a broadcast are too large", expected=f"at most {MAX_BYTES} bytes", found=total)
    return b"".join(parts)


def decode_manifest(data: bytes | bytearray | memoryview) -> tuple[list[Entry], int]:
    """(tensors, bytes read) of what begins `data`. Raises RankError, also for more than MAX_BYTES in all."""
    data, entries, total = bytes(data), [], 0
    try:
        (count,) = struct.unpack_from("<H", data)
        at = 2
        if count > MAX_TENSORS:
            raise RankError("a broadcast holds too many tensors", expected=f"at most {MAX_TENSORS}", found=count)
        for _ in range(count):
            length, dtype, dims = struct.unpack_from("<BBB", data, at)
            name = data[at + 3:at + 3 + length].decode()
            shape = struct.unpack_from(f"<{min(dims, MAX_DIMS + 1)}Q", data, at + 3 + length)
            at += 3 + length + 8 * dims
            if dtype >= len(_NAMES) or dims > MAX_DIMS or not name or any(size > MAX_BYTES for size in shape):
                raise RankError("a tensor of a broadcast is out of bounds", field=name, found=f"dtype {dtype}, {[*shape]}")
            entries.append(Entry(name, _NAMES[dtype], shape))
            total += entries[-1].nbytes
    except (struct.error, UnicodeDecodeError) as fault:
        raise RankError("the list of a broadcast's tensors is damaged", found=fault) from None
    if total > MAX_BYTES or len({entry.name for entry in entries}) != len(entries):
        raise RankError("the tensors of a broadcast are too large, or two have one name", found=f"{total} bytes")
    return entries, at


def encode_object(value: Mapping[str, Any]) -> bytes:
    """A JSON object: facts to agree on, or an error."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False).encode()


def decode_object(data: bytes) -> dict[str, Any]:
    """What `encode_object` was given. Raises RankError for anything that is not one JSON object."""
    return parse_json(data, error=RankError)
