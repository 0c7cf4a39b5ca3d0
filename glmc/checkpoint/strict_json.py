"""JSON without surprises: one object, no duplicate key, no NaN, no huge number, no deep nesting, a size cap."""

from __future__ import annotations

import json
import math
from typing import Any

from glmc.checkpoint.regular_file import read_range, regular_file
from glmc.errors import GlmcError

_DIGITS = 31  # every 64-bit integer, and how transformers writes that a tokenizer's texts have no limit
_DEPTH = 64


class _Refused(ValueError):
    """What one of the parser's hooks found; turned into the caller's error class by `parse_json`."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Refused(f"the key {key!r} stands twice in one object")
            seen.add(key)
    return made


def _integer(text: str) -> int:
    if len(text.lstrip("-")) > _DIGITS:
        raise _Refused(f"an integer of {len(text)} characters")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Refused(f"the number {text[:40]} overflows")
    return value


def _constant(text: str) -> float:
    raise _Refused(f"{text} is not JSON")


def _deeper_than(value: dict[str, Any], limit: int) -> bool:
    level: list[Any] = [value]
    for _ in range(limit):
        level = [child for box in level for child in (box.values() if isinstance(box, dict) else box)
                 if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def parse_json(data: bytes, *, error: type[GlmcError], file: Any = None) -> dict[str, Any]:
    """The one object that `data` (UTF-8) holds. Raises `error` naming what is wrong.

    A boolean stays a `bool`: check integers with `type(x) is int`.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_int=_integer,
                           parse_float=_float, parse_constant=_constant)
        if isinstance(value, dict) and _deeper_than(value, _DEPTH):
            raise _Refused(f"nested deeper than {_DEPTH}")
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # a lone surrogate cannot be encoded
    except RecursionError:
        raise error("the JSON cannot be accepted", file=file, expected=f"at most {_DEPTH} levels",
                    found="deeper nesting") from None
    except (UnicodeDecodeError, UnicodeEncodeError) as fault:
        raise error("the JSON is not valid UTF-8", file=file, expected="UTF-8", found=fault.reason) from fault
    except ValueError as fault:
        raise error("the JSON cannot be accepted", file=file, expected="one strict JSON object",
                    found=str(fault)) from fault
    if not isinstance(value, dict):
        raise error("the JSON is not an object", file=file, expected="an object {...}", found=type(value).__name__)
    return value


def load_json(path: Any, max_bytes: int, *, error: type[GlmcError]) -> dict[str, Any]:
    """The object in the regular file `path`, at most `max_bytes` long. Raises `error`, or StorageError."""
    with regular_file(path, error=error) as (descriptor, state):
        if state.st_size > max_bytes:
            raise error("the JSON file is too large", file=path, expected=f"at most {max_bytes} bytes",
                        found=f"{state.st_size} bytes")
        data = read_range(descriptor, state.st_size, 0, file=path, error=error)
    return parse_json(data, error=error, file=path)
