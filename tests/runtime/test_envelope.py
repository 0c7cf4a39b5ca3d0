"""The header before everything that ranks send: read back as written; whatever else comes is refused before it is used."""

from __future__ import annotations

import random
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from glmc.errors import GlmcError, NumericError, RankError
from glmc.runtime.envelope import (
    DTYPES,
    HEADER,
    MAX_BYTES,
    OPS,
    TAG,
    Entry,
    Header,
    decode,
    decode_manifest,
    encode,
    encode_manifest,
)
from glmc.runtime.rank_fault import CLASSES, RankFault

PLAIN = Header(b"r" * 16, "decode 3", 4, 9, "reduce", 1, "float32", (2, 3), 24, b"d" * 16)


def sealed(data: bytearray) -> bytes:
    """The bytes with the sum that belongs to them, so that only the fields can be wrong."""
    data[-4:] = struct.pack("<I", zlib.crc32(data[:-4]))
    return bytes(data)


@given(stage=some.text(max_size=10), number=some.integers(0, 2**32 - 1), sequence=some.integers(0, 2**64 - 1),
       op=some.sampled_from(OPS), rank=some.integers(0, 65535), dtype=some.sampled_from([*DTYPES]),
       shape=some.lists(some.integers(0, 9), max_size=8))
@settings(max_examples=200, deadline=None)
def test_a_header_is_read_back(stage, number, sequence, op, rank, dtype, shape):
    length = DTYPES[dtype]
    for size in shape:
        length *= size
    header = Header(b"x" * 16, stage.replace("\0", ""), number, sequence, op, rank, dtype, tuple(shape), length)
    assert decode(encode(header)) == header


@pytest.mark.parametrize("wrong", [
    {"length": 1 << 63}, {"length": MAX_BYTES + 1}, {"length": 23}, {"shape": (MAX_BYTES + 1,)}, {"shape": (-1,)},
    {"shape": (1 << 36, 1 << 36)}, {"shape": (1,) * 9}, {"dtype": "object"}, {"op": "run"}, {"stage": "s" * 41},
    {"stage": "a\0b"}, {"digest": b""}, {"run": b"r"}, {"rank": -1}, {"sequence": 1 << 64}, {"number": 1 << 32}, {"status": 2},
], ids=str)
def test_what_is_out_of_bounds_is_not_written(wrong):
    with pytest.raises(RankError):
        encode(PLAIN._replace(**wrong))


@pytest.mark.parametrize(("at", "form", "value"), [
    (0, "4s", b"GLMx"), (4, "<H", 2), (6, "<B", 6), (76, "<B", 2), (77, "<B", 99), (78, "<B", 9), (78, "<B", 255),
    (84, "<Q", 1 << 63), (84, "<Q", 1 << 36), (100, "<Q", 1), (148, "<Q", 1 << 63), (148, "<Q", 25), (36, "2s", b"\xff\xfe"),
], ids=str)
def test_a_field_out_of_bounds_is_refused(at, form, value):
    data = bytearray(encode(PLAIN))
    struct.pack_into(form, data, at, value)
    with pytest.raises(RankError):
        decode(sealed(data))


def test_every_flipped_bit_and_every_length_is_refused():
    whole = encode(PLAIN)
    for bit in range(8 * HEADER):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RankError):
            decode(data)
    for length in range(HEADER):
        with pytest.raises(RankError):
            decode(whole[:length])


def hurt(pick: random.Random, count: int) -> int:
    """`count` inputs to the decoders: noise, and headers and lists with bytes changed, sealed or not; how many were read."""
    read, listed = 0, encode_manifest([Entry("ids", "int64", (3,)), Entry("pixels", "float32", (2, 7, 5))])
    for _ in range(count):
        kind = pick.randrange(4)
        data = bytearray(pick.randbytes(pick.choice((HEADER, 7, 300))) if kind == 0 else listed if kind == 1 else encode(PLAIN))
        for _ in range(pick.randint(1, 4)):
            data[pick.randrange(len(data))] = pick.choice((0, 1, 127, 255, pick.randrange(256)))
        try:
            if kind == 1:
                entries, at = decode_manifest(data)
                assert at <= len(data)
                assert sum(entry.nbytes for entry in entries) <= MAX_BYTES
            else:
                header = decode(sealed(data) if kind == 3 else data)
                assert header.length <= MAX_BYTES
                assert encode(header) == bytes(sealed(data) if kind == 3 else data)
        except RankError:
            continue
        read += 1
    return read


def test_noise_raises_nothing_else():
    assert hurt(random.Random(1), 20_000) > 100


@pytest.mark.slow
def test_a_million_inputs_raise_nothing_else():
    assert hurt(random.Random(2), 1_000_000) > 5_000


def test_equal_calls_have_equal_tags():
    assert encode(PLAIN)[:TAG] == encode(PLAIN._replace(rank=0))[:TAG]
    for name, value in {"stage": "decode 4", "number": 5, "sequence": 10, "op": "gather", "dtype": "int32", "shape": (3, 2),
                        "run": b"s" * 16, "digest": b"e" * 16}.items():
        assert encode(PLAIN)[:TAG] != encode(PLAIN._replace(**{name: value}))[:TAG], name


@pytest.mark.parametrize("entries", [
    [Entry("a", "float32", (1,)), Entry("a", "float32", (1,))], [Entry("", "float32", ())], [Entry("a", "object", ())],
    [Entry("a", "int8", (1 << 36,)), Entry("b", "int8", (1 << 36,))], [Entry("a", "int8", (1,) * 9)],
    [Entry(str(i), "int8", ()) for i in range(257)],
], ids=range(6))
def test_a_list_out_of_bounds_is_not_written(entries):
    with pytest.raises(RankError):
        encode_manifest(entries)


@pytest.mark.parametrize("kind", CLASSES.values(), ids=lambda kind: kind.code)
def test_an_error_arrives_as_its_own_class(kind):
    sent = RankFault.of(kind("it broke", field="x", expected=1, found="\x1b[2J", hint="mend it"), 3, "decode 7")
    got = RankFault.from_json(sent.to_json()).error()
    assert type(got) is kind
    assert got.exit == kind.exit
    assert got.fault.ranks == (3,)
    assert "rank 3, stage 'decode 7': it broke" in str(got)
    assert (got.field, got.expected, got.hint) == ("x", "1", "mend it")
    assert "\x1b" not in str(got)


def test_an_error_keeps_its_origin_on_its_way():
    first = RankFault.of(NumericError("not finite"), 2, "prefill 0")
    assert RankFault.of(first.error(), 0, "decode 1").ranks == (2,)
    lost = RankFault("has gone", ranks=(2,), stage="s").error()
    assert RankFault.of(lost, 0, "t") == lost.fault


@pytest.mark.parametrize("told", [{}, {"what": 1}, {"what": "x", "ranks": ["0"]}, {"what": "x", "ranks": 3},
                                  {"what": "x", "hint": []}, {"what": "x", "ranks": [True]}], ids=range(6))
def test_what_is_no_error_is_refused(told):
    with pytest.raises(RankError):
        RankFault.from_json(told)


def test_an_unknown_code_is_a_rank_error():
    got = RankFault.from_json({"what": "x", "code": "os.system", "exit": 0}).error()
    assert type(got) is RankError
    assert got.exit == 6
    assert issubclass(type(got), GlmcError)
