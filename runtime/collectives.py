"""Calls that all ranks of a group make together, each checked before its result is used.

Every call begins with a swap of frames (`glmc.runtime.exchange`) whose headers must be equal: run, stage, how many stages and
calls there were, operation, dtype and shape. A rank that leaves out a call is thus found at the next call that differs, at the
latest when the stage ends, which is before an answer is released; another dtype or shape is found at once. Up to 16 KiB the
tensor travels in the frame, so that the check costs little beside it. Tensors of a device go over the device's own group, and
what was called there is compared at the end of the stage.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping

import torch

from glmc.errors import GlmcError, RankError
from glmc.runtime import checksum
from glmc.runtime.device_group import DeviceGroup
from glmc.runtime.envelope import (
    FAILED,
    HEADER,
    PLACE,
    TAG,
    Header,
    decode,
    decode_object,
    encode,
    encode_object,
)
from glmc.runtime.exchange import BODY, INLINE, Exchange
from glmc.runtime.rank_fault import RankFault

_FIXED = bytes(16)


class Collectives:
    """`Ranks` without the broadcast. rank, size: in the group. run: 16 bytes that the group shares.

    After any error the group is of no use: the ranks are no longer at the same call.
    """

    def __init__(self, exchange: Exchange, run: bytes, on_device: DeviceGroup | None = None) -> None:
        self.exchange, self.run, self.on_device = exchange, run, on_device
        self.rank, self.size = exchange.rank, len(exchange.members)
        self.stage, self.number, self._calls = "start", 0, itertools.count(1)
        self.watch: Callable[[str], None] = lambda stage: None
        """Is told each stage that is entered."""

    def enter(self, stage: str) -> None:
        """Begin a stage: at most 40 bytes of text, the same on every rank. Waits for others only where a device was used."""
        if self.on_device and (trail := self.on_device.trail()):
            self._equal("same", digest=trail)
        self.stage, self.number = stage, self.number + 1
        self.watch(stage)

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of all ranks' tensors in the order of ranks, of one shape and dtype, with the same bits on each.

        16-bit values are added in float32 and rounded once. Raises RankError on every rank.
        """
        if tensor.device.type != "cpu":
            return self._device(tensor).all_reduce(tensor)
        parts = self._parts("reduce", tensor)
        if parts is None:
            total = tensor.clone(memory_format=torch.contiguous_format)
            self.exchange.wait(self.exchange.group.allreduce([total]), None, self.stage)
            return total
        wide = torch.float32 if self.size > 2 and tensor.dtype in (torch.bfloat16, torch.float16) else tensor.dtype
        total = torch.add(parts[0].to(wide), parts[1].to(wide))
        for part in parts[2:]:
            total += part
        return total.to(tensor.dtype)

    def all_gather(self, tensor: torch.Tensor, dim: int, alike: int = 0) -> torch.Tensor:
        """All ranks' tensors, of one shape and dtype, one after another along `dim`. Raises RankError on every rank.

        alike: so many first entries along `dim` are the same on all ranks, which is not looked into, and come once.
        """
        dim %= tensor.dim()
        first, own = tensor.split([alike, tensor.shape[dim] - alike], dim)
        if tensor.device.type != "cpu":
            return torch.cat([first, self._device(tensor).all_gather(own.contiguous(), dim)], dim)
        whole = self._whole(first, own, dim)
        return torch.cat([first, *self._gathered(own)], dim) if whole is None else whole

    def _whole(self, first: torch.Tensor, own: torch.Tensor, dim: int) -> torch.Tensor | None:
        """What two ranks gather, each share received where it belongs; None where they lie in several pieces, or are small."""
        count = own.shape[dim]
        if self.size != 2 or own.nbytes <= INLINE or math.prod(own.shape[:dim]) != 1:
            return None
        self._equal("gather", _name(own), tuple(own.shape), own.nbytes)
        whole = own.new_empty([*own.shape[:dim], first.shape[dim] + 2 * count, *own.shape[dim + 1:]])
        _, *shares = whole.split([first.shape[dim], count, count], dim)
        whole.narrow(dim, 0, first.shape[dim]).copy_(first)
        shares[self.rank].copy_(own)
        self.exchange.trade(checksum.flat_bytes(shares[self.rank]), checksum.flat_bytes(shares[1 - self.rank]), self.stage)
        return whole

    def _gathered(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        parts = self._parts("gather", tensor)
        if parts is None:
            parts = [torch.empty(tensor.shape, dtype=tensor.dtype) for _ in range(self.size)]
            self.exchange.wait(self.exchange.group.allgather([parts], [tensor.contiguous()]), None, self.stage)
        return parts

    def same(self, stage: str, *tensors: torch.Tensor) -> None:
        """Begin a stage, and refuse to go on unless all ranks bring the same tensors, bit for bit. Raises RankError on each."""
        self.enter(stage)
        held = [tensor.contiguous().cpu() for tensor in tensors]
        shape = tuple(held[0].shape) if held else ()
        length = held[0].nbytes if held else 0
        self._equal("same", _name(held[0]) if held else "uint8", shape, length, checksum.digest(*held))

    def agree(self, facts: Mapping[str, str], stage: str = "start") -> None:
        """Begin a stage, and refuse to go on unless all ranks hold the same facts. Raises RankError that shows what differs."""
        self.enter(stage)
        body = encode_object(facts)
        if len(body) > INLINE:
            raise RankError("the facts to agree on are too long", expected=f"at most {INLINE} bytes", found=len(body))
        self.exchange.mine[BODY:BODY + len(body)] = body
        self._send("agree", length=len(body), digest=hashlib.blake2b(body, digest_size=16).digest())
        if self._differ(TAG):
            headers = self.headers(PLACE)
            said = [decode_object(self.body(i, header)) for i, header in enumerate(headers)]
            wrong = sorted({k for one in said for k in one.keys() | facts.keys() if one.get(k) != said[0].get(k)})
            told = [str(one.get(wrong[0])) for one in said] if wrong else [header.what() for header in headers]
            raise self._apart("the ranks disagree", wrong[0] if wrong else None, told)

    def part(self) -> None:
        """Begin the last stage and leave it: nobody goes while another still works. Raises RankError where one has gone."""
        self.same("close")
        self.exchange.mine[:HEADER] = encode(self.header("close"))
        self.exchange.leave()

    def fail(self, error: BaseException) -> GlmcError:
        """Tell the others why this rank stops; the error to raise here."""
        fault = RankFault.of(error, self.exchange.members[self.rank], self.stage)
        body = encode_object(fault.to_json())[:INLINE]
        header = encode(self.header("close", length=len(body), status=FAILED))
        self.exchange.tell(fault, header.ljust(BODY, b"\0") + body)
        return fault.error()

    def _device(self, tensor: torch.Tensor) -> DeviceGroup:
        if self.on_device is None:
            raise RankError("the ranks were opened without a group for this device", found=tensor.device)
        return self.on_device

    def _parts(self, op: str, tensor: torch.Tensor) -> list[torch.Tensor] | None:
        """All ranks' tensors, valid until the next call; None, after the check, where they are too large for a frame and more
        than two: gloo's own collective is to be used then."""
        tensor = tensor.contiguous()
        size, shape = tensor.nbytes, tensor.shape
        inline = size <= INLINE
        if inline:
            self.exchange.outgoing[BODY:BODY + size].copy_(checksum.flat_bytes(tensor))
        self._equal(op, _name(tensor), tuple(shape), size)
        if inline:
            return [frame[BODY:BODY + size].view(tensor.dtype).view(shape) for frame in self.exchange.tensors]
        if self.size != 2:
            return None
        other = torch.empty_like(tensor)
        self.exchange.trade(checksum.flat_bytes(tensor), checksum.flat_bytes(other), self.stage)
        return [tensor, other] if self.rank == 0 else [other, tensor]

    def header(self, op: str, dtype: str = "uint8", shape: tuple[int, ...] = (), length: int = 0, digest: bytes = _FIXED,
                status: int = 0) -> Header:
        return Header(self.run, self.stage, self.number, next(self._calls), op, self.rank, dtype, shape, length, digest, status)

    def _send(self, op: str, *what, **named) -> None:
        self.exchange.mine[:HEADER] = encode(self.header(op, *what, **named))
        self.exchange.swap(self.stage)

    def _equal(self, op: str, *what, **named) -> None:
        """One swap after which all headers must be equal."""
        self._send(op, *what, **named)
        if self._differ(TAG):
            headers = self.headers(PLACE)
            said = [header.what() for header in headers]
            raise self._apart("the ranks bring different tensors to one call", self.stage, said)

    def _differ(self, length: int) -> bool:
        first, *others = self.exchange.frames
        return any(frame[:length] != first[:length] for frame in others)

    def body(self, rank: int, header: Header) -> bytes:
        """The inline part of a rank's frame. Raises RankError where it is not what the header tells."""
        if header.length > INLINE:
            raise self.whose("a message is longer than its frame", rank)
        body = bytes(self.exchange.frames[rank][BODY:BODY + header.length])
        if header.digest != _FIXED and hashlib.blake2b(body, digest_size=16).digest() != header.digest:
            raise self.whose("a message does not agree with its digest", rank)
        return body

    def headers(self, length: int) -> list[Header]:
        """All ranks' headers, each checked by itself and, by its first `length` bytes, against the others.

        Raises what a rank has failed with, else RankError that names the rank.
        """
        headers = [self.one_header(i) for i in range(self.size)]
        if self._differ(length):
            ahead = max(header.number for header in headers)
            culprits = ([i for i, header in enumerate(headers) if header.op == "close"]
                        or [i for i, header in enumerate(headers) if header.number == ahead])
            raise self._apart("the ranks are not at the same call; one left out a call, or made one too many", self.stage,
                              [header.place() for header in headers], culprits if len(culprits) < self.size else None)
        return headers

    def one_header(self, rank: int) -> Header:
        """A rank's header, checked by itself. Raises what it has failed with, else RankError that names it."""
        try:
            header = decode(self.exchange.frames[rank])
        except RankError as fault:
            raise self.whose(fault.what, rank) from fault
        if header.rank != rank or header.run != self.run:
            raise self.whose("the message is another rank's, or of another run", rank)
        if header.status == FAILED:
            raise RankFault.from_json(decode_object(self.body(rank, header))).error()
        return header

    def whose(self, what: str, rank: int) -> GlmcError:
        return self.fail(RankFault(what, ranks=(self.exchange.members[rank],), stage=self.stage).error())

    def _apart(self, what: str, field: str | None, said: list[str], culprits: list[int] | None = None) -> GlmcError:
        """Ranks that say different things: those outside the majority are named, all where there is none."""
        most, count = Counter(said).most_common(1)[0]
        if culprits is None:
            culprits = [i for i, text in enumerate(said) if text != most or count * 2 <= self.size]
        members = self.exchange.members
        found = "; ".join(f"rank {members[i]}: {text}" for i, text in enumerate(said))
        return self.fail(RankFault(what, ranks=tuple(members[i] for i in culprits), stage=self.stage, field=field or None,
                                   found=found).error())


def _name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
