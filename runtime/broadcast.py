"""One rank runs a stage and the others receive what came of it: named tensors, or the error.

The status comes first, in the header of the swap, and whatever can fail on the sender has happened by then: running and listing
the tensors. Receivers allocate from the list after its bounds were checked. Up to 16 KiB all of it is one swap. More goes in
pieces by gloo's own broadcast, each looked at and added up while the next is under way; a last swap tells the sender's sum, or
that a value was not finite, before any receiver uses one.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
import torch.distributed as dist

from glmc.errors import GlmcError, NumericError, RankError
from glmc.runtime import checksum
from glmc.runtime.collectives import Collectives
from glmc.runtime.envelope import (
    FAILED,
    HEADER,
    OK,
    PLACE,
    TAG,
    Entry,
    Header,
    decode_manifest,
    encode,
    encode_manifest,
    encode_object,
)
from glmc.runtime.exchange import BODY, INLINE
from glmc.runtime.rank_fault import RankFault
from glmc.runtime.ranks import MAIN

PIECE = 1 << 23
_IN_FLIGHT = 4
_NOTHING = encode(Header(bytes(16), "", 0, 0, "broadcast", 0))[PLACE:TAG]
"""What a header tells of a rank that only receives."""


def broadcast(group: Collectives, stage: str, run: Callable[[], Mapping[str, torch.Tensor]],
              not_finite: Collection[str] = ()) -> dict[str, torch.Tensor]:
    """Begin a stage; what `run` returns on rank MAIN, on every rank and on the host. not_finite: names that may hold NaN.

    Raises what `run` raised, on every rank: its own class where that is one of glmc's, else RankError.
    """
    group.enter(stage)
    if group.rank == MAIN:
        return _send(group, run, not_finite)
    return _receive(group)


def _send(group: Collectives, run: Callable[[], Mapping[str, torch.Tensor]], not_finite: Collection[str],
          ) -> dict[str, torch.Tensor]:
    try:
        made = {name: tensor.detach().cpu().contiguous() for name, tensor in run().items()}
        listed = encode_manifest([Entry(name, str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in made.items()])
        pieces = [checksum.flat_bytes(tensor) for tensor in made.values()]
        size = len(listed) + sum(map(len, pieces))
        looked_at = {name for name, tensor in made.items() if tensor.is_floating_point() and name not in not_finite}
        if size <= INLINE:
            for name in looked_at:
                _check_finite(name, made[name])
        body = b"".join((listed, *(piece.numpy().data for piece in pieces))) if size <= INLINE else listed
        if len(body) > INLINE:
            raise RankError("a broadcast's list of tensors is too long", expected=f"at most {INLINE} bytes", found=len(body))
        head = encode(group.header("broadcast", "uint8", (size,), size, _digest(body)))
    except Exception as error:
        raise _failed(group, error) from error
    _swap(group, head, body)
    if size > INLINE:
        _pour(group, made, listed, looked_at)
    return made


def _pour(group: Collectives, made: dict[str, torch.Tensor], listed: bytes, looked_at: set[str]) -> None:
    """Send the tensors in pieces, which are looked at while they travel; last the receivers hear whether all are finite."""
    total, faults = checksum.Checksum(listed), list[NumericError]()

    def sent(name: str, piece: torch.Tensor) -> None:
        total.add(piece)
        if name in looked_at and not faults:
            try:
                _check_finite(name, piece.view(made[name].dtype))
            except NumericError as fault:
                faults.append(fault)

    _stream(group, made, sent, lambda name, piece: None)
    if faults:
        raise _failed(group, faults[0]) from faults[0]
    _swap(group, encode(group.header("broadcast", digest=total.digest())), b"")


def _failed(group: Collectives, error: Exception) -> GlmcError:
    """Tell the receivers, who wait, of an error; what to raise here."""
    fault = RankFault.of(error, group.exchange.members[MAIN], group.stage)
    body = encode_object(fault.to_json())[:INLINE]
    _exchange(group, encode(group.header("broadcast", length=len(body), digest=_digest(body), status=FAILED)), body)
    return fault.error()


def _receive(group: Collectives) -> dict[str, torch.Tensor]:
    header = _swap(group, encode(group.header("broadcast")), b"")
    if header.dtype != "uint8" or header.shape != (header.length,):
        raise group.whose("a broadcast announces other than bytes", MAIN)
    inline = header.length <= INLINE
    body = bytearray(group.exchange.frames[MAIN][BODY:BODY + min(header.length, INLINE)])
    try:
        entries, at = decode_manifest(body)
        if at + sum(entry.nbytes for entry in entries) != header.length:
            raise RankError("a broadcast's list does not agree with its length", found=header.length)
        if _digest(body if inline else body[:at]) != header.digest:
            raise RankError("a message does not agree with its digest")
        if inline:
            return _unpacked(body, entries, at)
        made = {entry.name: torch.empty(entry.shape, dtype=getattr(torch, entry.dtype)) for entry in entries}
    except (RankError, RuntimeError) as fault:  # torch's own error is that there is no memory
        raise group.whose(fault.what if isinstance(fault, RankError) else str(fault), MAIN) from fault
    total = checksum.Checksum(bytes(body[:at]))
    _stream(group, made, lambda name, piece: None, lambda name, piece: total.add(piece))
    if _swap(group, encode(group.header("broadcast")), b"").digest != total.digest():
        raise group.whose("what was received does not agree with its digest", MAIN)
    return made


def _unpacked(body: bytearray, entries: list[Entry], at: int) -> dict[str, torch.Tensor]:
    """The tensors in `body` from byte `at` on, each with memory of its own."""
    made = {}
    for entry in entries:
        dtype, size = getattr(torch, entry.dtype), entry.nbytes
        made[entry.name] = (torch.frombuffer(body[at:at + size], dtype=dtype).view(entry.shape) if size else
                            torch.empty(entry.shape, dtype=dtype))
        at += size
    return made


def _exchange(group: Collectives, head: bytes, body: bytes) -> None:
    """A swap in which this rank sends these."""
    mine = group.exchange.mine
    mine[:HEADER], mine[BODY:BODY + len(body)] = head, body
    group.exchange.swap(group.stage)


def _swap(group: Collectives, head: bytes, body: bytes) -> Header:
    """MAIN's header, after the swap in which the others send nothing. Raises RankError where one of them is at another call."""
    _exchange(group, head, body)
    frames = group.exchange.frames
    nothing = frames[MAIN][:PLACE].tobytes() + _NOTHING
    if frames[MAIN][PLACE] == OK and all(frame[:TAG] == nothing for frame in frames[1:]):
        return group.one_header(MAIN)
    main, *others = group.headers(PLACE)
    for header in others:
        if header.length or header.shape or header.dtype != "uint8":
            raise group.whose("a rank that receives has sent something", header.rank)
    return main


def _stream(group: Collectives, tensors: Mapping[str, torch.Tensor], begun: Callable[[str, torch.Tensor], None],
            landed: Callable[[str, torch.Tensor], None]) -> None:
    """Broadcast tensors piece by piece; `begun` and `landed` take a tensor's name and the piece, uint8, while others travel."""
    flying = deque[tuple[Any, str, torch.Tensor]]()

    def land() -> None:
        work, name, piece = flying.popleft()
        group.exchange.wait(work, None if group.rank == MAIN else MAIN, group.stage)
        landed(name, piece)

    for name, tensor in tensors.items():
        for piece in checksum.flat_bytes(tensor).split(PIECE) if tensor.numel() else ():
            if len(flying) == _IN_FLIGHT:
                land()
            flying.append((_begin(group, piece), name, piece))
            begun(name, piece)
    while flying:
        land()


def _begin(group: Collectives, piece: torch.Tensor) -> Any:
    options = dist.BroadcastOptions()
    options.rootRank, options.rootTensor = MAIN, 0
    try:
        return group.exchange.group.broadcast([piece], options)
    except RuntimeError as fault:
        raise group.exchange.lost(fault, None, group.stage) from fault


def _check_finite(name: str, tensor: torch.Tensor) -> None:
    """Raises NumericError. The least and the most are found in one pass; each is NaN where any value is."""
    if tensor.numel() and not all(torch.isfinite(end) for end in (tensor.float() if tensor.itemsize < 2 else tensor).aminmax()):
        raise NumericError("a value to be sent to the other ranks is not finite", field=name)


def _digest(body: bytes | bytearray | memoryview) -> bytes:
    return hashlib.blake2b(body, digest_size=checksum.SIZE).digest()
