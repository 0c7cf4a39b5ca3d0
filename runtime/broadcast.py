"""One rank runs a stage and the others receive what came of it: named tensors, or the error.

The status comes first, in the header of the swap, and whatever can fail on the sender has happened by then: running, checking
and listing the tensors. Receivers allocate from the list after its bounds were checked. Up to 16 KiB all of it is one swap.
More goes in pieces by gloo's own broadcast; each side adds a piece up while the next is under way; last the sums are compared.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
import torch.distributed as dist

from glmc.errors import NumericError, RankError
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
_IN_FLIGHT = 2
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
    exchange = group.exchange
    try:
        made = {name: tensor.detach().cpu().contiguous() for name, tensor in run().items()}
        listed = encode_manifest([Entry(name, str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in made.items()])
        _check_finite(made, not_finite)
        pieces = [checksum.flat_bytes(tensor) for tensor in made.values()]
        size = len(listed) + sum(map(len, pieces))
        body = b"".join((listed, *(piece.numpy().data for piece in pieces))) if size <= INLINE else listed
        if len(body) > INLINE:
            raise RankError("a broadcast's list of tensors is too long", expected=f"at most {INLINE} bytes", found=len(body))
        head = encode(group.header("broadcast", "uint8", (size,), size, _digest(body)))
    except Exception as error:
        fault = RankFault.of(error, exchange.members[MAIN], group.stage)
        body = encode_object(fault.to_json())[:INLINE]
        head = encode(group.header("broadcast", length=len(body), digest=_digest(body), status=FAILED))
        _exchange(group, head, body)
        raise fault.error() from error
    _swap(group, head, body)
    if size > INLINE:
        _stream(group, pieces, listed)
    return made


def _receive(group: Collectives) -> dict[str, torch.Tensor]:
    header = _swap(group, encode(group.header("broadcast")), b"")
    if header.dtype != "uint8" or header.shape != (header.length,):
        raise group.whose("a broadcast announces other than bytes", MAIN)
    inline = header.length <= INLINE
    frame = group.exchange.frames[MAIN][BODY:]
    try:
        entries, at = decode_manifest(frame)
        if at + sum(entry.nbytes for entry in entries) != header.length:
            raise RankError("a broadcast's list does not agree with its length", found=header.length)
        if _digest(frame[:header.length if inline else at]) != header.digest:
            raise RankError("a message does not agree with its digest")
        made = {entry.name: torch.empty(entry.shape, dtype=getattr(torch, entry.dtype)) for entry in entries}
    except (RankError, RuntimeError) as fault:  # torch's own error is that there is no memory
        raise group.whose(fault.what if isinstance(fault, RankError) else str(fault), MAIN) from fault
    pieces = [checksum.flat_bytes(tensor) for tensor in made.values()]
    if inline:
        for piece in pieces:
            piece.copy_(group.exchange.tensors[MAIN][BODY + at:BODY + at + len(piece)])
            at += len(piece)
    else:
        _stream(group, pieces, bytes(frame[:at]))
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


def _stream(group: Collectives, tensors: list[torch.Tensor], listed: bytes) -> None:
    """Broadcast uint8 tensors piece by piece, and last their sum."""
    total, flying = checksum.Checksum(listed), deque[tuple[Any, torch.Tensor]]()
    receives = group.rank != MAIN

    def land() -> None:
        work, piece = flying.popleft()
        group.exchange.wait(work, MAIN if receives else None, group.stage)
        if receives:
            total.add(piece)

    for tensor in tensors:
        for piece in tensor.split(PIECE) if len(tensor) else ():
            if len(flying) == _IN_FLIGHT:
                land()
            flying.append((_begin(group, piece), piece))
            if not receives:
                total.add(piece)
    while flying:
        land()
    ours = total.digest()
    theirs = torch.frombuffer(bytearray(ours), dtype=torch.uint8)
    flying.append((_begin(group, theirs), theirs[:0]))
    land()
    if theirs.numpy().tobytes() != ours:
        raise group.whose("what was received does not agree with its digest", MAIN)


def _begin(group: Collectives, piece: torch.Tensor) -> Any:
    options = dist.BroadcastOptions()
    options.rootRank, options.rootTensor = MAIN, 0
    try:
        return group.exchange.group.broadcast([piece], options)
    except RuntimeError as fault:
        raise group.exchange.lost(fault, None, group.stage) from fault


def _check_finite(tensors: Mapping[str, torch.Tensor], exempt: Collection[str]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel() and name not in exempt:
            # The least and the most, in one pass; each is NaN where any value is.
            if not all(torch.isfinite(end) for end in (tensor.float() if tensor.itemsize < 2 else tensor).aminmax()):
                raise NumericError("a value to be sent to the other ranks is not finite", field=name)


def _digest(body: bytes | memoryview) -> bytes:
    return hashlib.blake2b(body, digest_size=checksum.SIZE).digest()
