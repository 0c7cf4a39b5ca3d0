"""The strict header pass: the library's laxities refused, each beside an accepted twin."""

import json
import os
import resource
import socket
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from glmc.checkpoint.safetensors_header import MAX_HEADER_BYTES, parse_header, read_header
from glmc.errors import DamagedShard, printable

A = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
B = {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}


def shard(header, data=b"\0" * 32, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def refuse(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(DamagedShard) as caught:
        read_header(path)
    assert caught.value.file == path
    assert all(c.isprintable() or c == "\n" for c in str(caught.value))
    return caught.value


def accept(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    return read_header(path)


def test_the_valid_twin(tmp_path):
    found = accept(tmp_path, shard({"a": A, "b": B, "__metadata__": {"format": "pt"}}))
    start = 8 + len(json.dumps({"a": A, "b": B, "__metadata__": {"format": "pt"}}))
    assert list(found) == ["a", "b"]
    assert (found["a"].dtype, found["a"].shape, found["a"].offset, found["a"].nbytes) == ("F32", (2, 3), start, 24)
    assert (found["b"].dtype, found["b"].shape, found["b"].offset, found["b"].nbytes) == ("BF16", (4,), start + 24, 8)


def test_every_truncation_is_refused(tmp_path):
    whole = save({"a": torch.ones(8, 8), "b": torch.ones(16, dtype=torch.bfloat16)})
    assert len(accept(tmp_path, whole)) == 2
    for cut in range(len(whole)):
        refuse(tmp_path, whole[:cut])


@pytest.mark.parametrize("length", [0, 1, 2**63, 2**64 - 1, MAX_HEADER_BYTES + 1, 100_000_000, 10_000])
def test_header_length(tmp_path, length):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refuse(tmp_path, shard({"a": A, "b": B}, length=length))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


BAD = {
    "duplicate tensor": b'{"a":%s,"a":%s}' % (json.dumps(A).encode(), json.dumps(B).encode()),
    "duplicate field": b'{"a":{"dtype":"F32","dtype":"F32","shape":[8],"data_offsets":[0,32]}}',
    "duplicate metadata key": b'{"__metadata__":{"x":"1","x":"1"},'
                              b'"a":{"dtype":"F32","shape":[8],"data_offsets":[0,32]}}',
    "metadata not text": {"__metadata__": {"x": 1}, "a": A, "b": B},
    "metadata a list": {"__metadata__": ["x"], "a": A, "b": B},
    "unknown field": {"a": {**A, "extra": 1}, "b": B},
    "field missing": {"a": {"dtype": "F32", "shape": [2, 3]}, "b": B},
    "entry a list": {"a": [1], "b": B},
    "space before": b" " + json.dumps({"a": A, "b": B}).encode(),
    "list": b"[1, 2, 3]",
    "bad UTF-8": b'{"\xff":1}',
    "NaN": b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,32]}}',
    "deep": b'{"a":' + b"[" * 200_000,
    "huge integer": b'{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,32]}}' % (b"9" * 4000),
    "unknown dtype": {"a": {**A, "dtype": "F31"}, "b": B},
    "dtype not text": {"a": {**A, "dtype": ["F32"]}, "b": B},
    "overlap": {"a": A, "b": {**B, "data_offsets": [20, 28]}},
    "same bytes twice": {"a": A, "b": A},
    "hole": {"a": A, "b": {"dtype": "BF16", "shape": [2], "data_offsets": [28, 32]}},
    "hole at the start": {"a": {"dtype": "F32", "shape": [7], "data_offsets": [4, 32]}},
    "trailing bytes": {"a": A},
    "too few bytes": {"a": A, "b": {"dtype": "BF16", "shape": [5], "data_offsets": [24, 34]}},
    "reversed": {"a": {**A, "data_offsets": [24, 0]}, "b": B},
    "size": {"a": {**A, "shape": [2, 4]}, "b": B},
    "overflowing product": {"a": {**A, "shape": [2**32, 2**32, 2**32]}, "b": B},
    "product wrapping to the size": {"a": {**A, "shape": [2**40, 2**40, 6]}, "b": B},
    "zero and a huge dim": {"a": A, "b": B, "c": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [32, 32]}},
    "zero and large dims": {"a": A, "b": B, "c": {"dtype": "U8", "shape": [0, 2**30, 2**30], "data_offsets": [32, 32]}},
    "negative dims": {"a": {**A, "shape": [-2, -3]}, "b": B},
    "float dim": {"a": {**A, "shape": [2.0, 3]}, "b": B},
    "boolean dim": {"a": {**A, "shape": [True, 6]}, "b": B},
    "boolean offset": {"a": {"dtype": "U8", "shape": [1], "data_offsets": [False, True]}},
    "negative offset": {"a": {**A, "data_offsets": [-24, 0]}, "b": B},
    "three offsets": {"a": {**A, "data_offsets": [0, 24, 24]}, "b": B},
    "rank": {"a": {**A, "shape": [1] * 7 + [2, 3]}, "b": B},
    "half a byte": {"a": {"dtype": "F4", "shape": [63], "data_offsets": [0, 32]}},
}
GOOD = {
    "metadata": {"__metadata__": {"x": "1"}, "a": A, "b": B},
    "any order": {"b": B, "a": A},
    "trailing spaces": json.dumps({"a": A, "b": B}).encode() + b"   ",
    "empty tensor shares an offset": {"a": A, "e": {"dtype": "F32", "shape": [0, 5], "data_offsets": [24, 24]}, "b": B},
    "scalar": {"a": A, "b": {"dtype": "F64", "shape": [], "data_offsets": [24, 32]}},
    "packed": {"a": {"dtype": "F4", "shape": [64], "data_offsets": [0, 32]}},
    "rank": {"a": {**A, "shape": [1] * 6 + [2, 3]}, "b": B},
}


@pytest.mark.parametrize("header", BAD.values(), ids=BAD)
def test_refused(tmp_path, header):
    refuse(tmp_path, shard(header))


@pytest.mark.parametrize("header", GOOD.values(), ids=GOOD)
def test_accepted(tmp_path, header):
    assert "a" in accept(tmp_path, shard(header))


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a\0b", "a\nb", "\x1b[31mred", "\u202eabc", "x" * 1_000_000,
                                  "", "a b", "a\\b", "..", "é"])
def test_hostile_names(tmp_path, name):
    fault = refuse(tmp_path, shard({name: A, "b": B}))
    assert len(str(fault)) < 2000
    assert printable(name)[:40] in str(fault)
    accept(tmp_path, shard({"model.layers.0.mlp.experts.127.gate_proj.weight": A, "b-1_2:3": B}))


@pytest.mark.parametrize("entry", [b'"%d":{},', b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'])
def test_a_million_entries_are_refused_in_time(tmp_path, entry):
    text = b"{" + b"".join(entry % i for i in range(1_000_000))[:-1] + b"}"
    begin = time.perf_counter()
    with pytest.raises(DamagedShard):
        parse_header(text, 8 + len(text), tmp_path / "x")
    assert time.perf_counter() - begin < 2
    path = tmp_path / "x.safetensors"  # 99 MB of header: refused by its length
    with path.open("wb") as file:
        file.write((99_000_000).to_bytes(8, "little"))
        file.truncate(99_000_008)
    with pytest.raises(DamagedShard):
        read_header(path)


def test_only_regular_files_are_opened(tmp_path):
    pipe, door, loop = tmp_path / "pipe", tmp_path / "socket", tmp_path / "loop"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(door))
        for path in (pipe, door, loop, tmp_path, tmp_path / "absent", "/dev/zero", "/dev/null"):
            begin = time.perf_counter()
            with pytest.raises(DamagedShard):
                read_header(path)
            assert time.perf_counter() - begin < 1
    real = tmp_path / "blob"
    real.write_bytes(shard({"a": A, "b": B}))
    (tmp_path / "link").symlink_to(real)  # as the Hugging Face cache lays files out
    assert len(read_header(tmp_path / "link")) == 2


WIDTH = {"F32": 4, "BF16": 2, "I64": 8, "U8": 1}
layouts = st.lists(st.tuples(st.sampled_from(sorted(WIDTH)), st.lists(st.integers(0, 4), max_size=3)), min_size=1,
                   max_size=6)


@settings(max_examples=150, deadline=None)
@given(layouts, st.data())
def test_a_valid_layout_is_accepted_and_one_broken_invariant_is_not(tmp_path_factory, layout, data):
    path = tmp_path_factory.getbasetemp() / "p.safetensors"
    header, at = {}, 0
    for number, (dtype, shape) in enumerate(layout):
        size = WIDTH[dtype]
        for dim in shape:
            size *= dim
        header[f"t{number}"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    path.write_bytes(shard(header, b"\1" * at))
    found = read_header(path)
    assert {n: (i.dtype, list(i.shape), i.nbytes) for n, i in found.items()} == {
        n: (e["dtype"], e["shape"], e["data_offsets"][1] - e["data_offsets"][0]) for n, e in header.items()}
    entry = header[data.draw(st.sampled_from(sorted(header)))]
    which = data.draw(st.sampled_from(["begin", "end", "dim", "tail"]))
    tail = at
    if which == "begin":
        entry["data_offsets"][0] += data.draw(st.sampled_from([-1, 1, 7]))
    elif which == "end":
        entry["data_offsets"][1] += data.draw(st.sampled_from([-1, 1, 7]))
    elif which == "dim":
        entry["shape"] = [*entry["shape"], 3] if entry["data_offsets"][1] > entry["data_offsets"][0] else [5]
    else:
        tail += data.draw(st.sampled_from([1, 8]))
    path.write_bytes(shard(header, b"\1" * tail))
    with pytest.raises(DamagedShard):
        read_header(path)
