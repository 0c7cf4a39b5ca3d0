"""Strict JSON: every refusal beside a valid twin."""

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmc.artifact import canonical
from glmc.checkpoint.strict_json import load_json, parse_json
from glmc.errors import ConfigError

REFUSED = {
    "duplicate key": b'{"a": 1, "a": 1}',
    "duplicate key below": b'{"a": {"b": 1, "c": 2, "b": 3}}',
    "duplicate key by escape": b'{"a": 1, "\\u0061": 1}',
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": -Infinity}',
    "overflow": b'{"a": 1e999}',
    "huge integer": b'{"a": ' + b"9" * 4000 + b"}",
    "huge negative integer": b'{"a": -' + b"9" * 32 + b"}",
    "deep lists": b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "deep objects": b'{"a":' * 80 + b"1" + b"}" * 80,
    "list": b"[1]",
    "number": b"1",
    "empty": b"",
    "truncated": b'{"a": ',
    "two objects": b'{"a": 1}{}',
    "bad UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"a": 1}',
    "lone surrogate": b'{"a": "\\ud800"}',
    "lone surrogate key": b'{"\\udfff": 1}',
    "control character": b'{"a": "\x01"}',
}
ACCEPTED = {
    "equal keys in two objects": (b'{"a": {"b": 1}, "c": {"b": 1}}', {"a": {"b": 1}, "c": {"b": 1}}),
    "large float": (b'{"a": 1e300}', {"a": 1e300}),
    "64-bit integer": (b'{"a": 18446744073709551615}', {"a": 2**64 - 1}),
    "nested": (b'{"a":' * 60 + b"1" + b"}" * 60, None),
    "empty object": (b"{}", {}),
    "surrogate pair": (b'{"a": "\\ud83d\\ude00"}', {"a": "\U0001f600"}),
    "spaces": (b' {"a" : [ ] } \n', {"a": []}),
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_refused(data):
    with pytest.raises(ConfigError) as caught:
        parse_json(data, error=ConfigError, file="config.json")
    assert caught.value.file == "config.json"
    assert all(c.isprintable() or c == "\n" for c in str(caught.value))


@pytest.mark.parametrize(("data", "value"), ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(data, value):
    found = parse_json(data, error=ConfigError)
    assert value is None or found == value


def test_many_keys_with_one_twice_are_refused_in_time():
    data = b"{" + b",".join(b'"k%d":0' % i for i in range(200_000)) + b',"k199999":0}'
    begin = time.perf_counter()
    with pytest.raises(ConfigError):
        parse_json(data, error=ConfigError)
    assert time.perf_counter() - begin < 5


def test_file_size_cap_and_kinds(tmp_path):
    path = tmp_path / "c.json"
    path.write_bytes(b'{"a": 1}')
    assert load_json(path, 8, error=ConfigError) == {"a": 1}
    with pytest.raises(ConfigError, match="too large"):
        load_json(path, 7, error=ConfigError)
    with pytest.raises(ConfigError):
        load_json(tmp_path / "absent.json", 100, error=ConfigError)
    with pytest.raises(ConfigError):
        load_json(tmp_path, 100, error=ConfigError)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="regular"):
        load_json(tmp_path / "pipe", 100, error=ConfigError)


plain = st.recursive(st.none() | st.booleans() | st.integers(-2**63, 2**63) | st.floats(allow_nan=False,
                     allow_infinity=False) | st.text(st.characters(exclude_categories=["Cs"])),
                     lambda c: st.lists(c) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), c),
                     max_leaves=12)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), plain))
def test_what_is_written_canonically_is_read_back(value):
    assert parse_json(canonical(value), error=ConfigError) == value


@given(st.binary(max_size=60))
def test_any_bytes_give_a_dict_or_the_named_error(data):
    try:
        found = parse_json(data, error=ConfigError)
    except ConfigError:
        found = {}
    assert isinstance(found, dict)
