"""Where a picture or a clip comes from: a file's path or its bytes, opened the same way and never fetched from a network."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any, BinaryIO

from glmc.checkpoint.regular_file import regular_file
from glmc.errors import MediaError, UsageError

_ADDRESSES = ("http://", "https://", "ftp://", "s3://", "file://", "data:")


def is_encoded(source: Any) -> bool:
    """Whether `source` is an encoded file, by path or as bytes, and not pixels already."""
    return isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview))


def said(source: Any) -> str:
    """What an error calls `source`: its path, or how many bytes it has, or its type."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"{len(source)} bytes in memory"
    return os.fsdecode(source) if isinstance(source, (str, os.PathLike)) else type(source).__name__


@contextmanager
def opened(source: Any, most: int) -> Iterator[BinaryIO]:
    """A seekable stream of the bytes of `source`: str or PathLike of a regular file, or bytes, bytearray, memoryview.

    Raises MediaError for an address, for what is not a regular file, for no bytes and for more than `most` bytes;
    StorageError when the system refuses to read.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        _check_length(len(source), most, source)
        yield io.BytesIO(source)
        return
    path = os.fsdecode(source)
    if path.lower().startswith(_ADDRESSES):
        raise MediaError("an address is not fetched", found=path[:80], expected="a file's path, or its bytes",
                         hint="download it first")
    if "\0" in path or not path:
        raise MediaError("this is not a path", found=path[:80], expected="a file's path, or its bytes")
    with regular_file(path, error=MediaError) as (descriptor, state):
        _check_length(state.st_size, most, source)
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            yield stream


def _check_length(count: int, most: int, source: Any) -> None:
    if not count:
        raise MediaError("the file is empty", file=said(source))
    if count > most:
        raise MediaError("the file is too large", file=said(source), expected=f"at most {most} bytes",
                         found=f"{count} bytes")


def library(name: str, extra: str) -> ModuleType:
    """The module `name` of an optional dependency. Raises UsageError that names the extra to install."""
    try:
        return import_module(name)
    except ImportError as fault:
        raise UsageError("reading this needs a package that is not installed", field=name, found=str(fault),
                         hint=f"pip install 'glmc[{extra}]'") from fault
