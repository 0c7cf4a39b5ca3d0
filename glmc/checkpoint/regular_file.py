"""Only regular files are opened, never waiting on a pipe or a device, and they are read to the last byte."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from glmc.errors import GlmcError, StorageError

# These say that the path is not such a file; every other errno is the machine's trouble and not the file's.
_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.ENAMETOOLONG, errno.ENODEV}


@contextmanager
def regular_file(path: Any, *, error: type[GlmcError], follow: bool = True) -> Iterator[tuple[int, os.stat_result]]:
    """An open descriptor and its own `fstat`, closed on leaving.

    The kind of file is checked on the descriptor, so that it cannot be swapped between check and use. `follow=False`
    refuses a symbolic link. Raises `error` when there is no regular file, StorageError when the system refuses.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except OSError as fault:
        if fault.errno in _NOT_THERE:
            raise error("the file cannot be opened", file=path, expected="a regular file",
                        found=fault.strerror) from fault
        raise StorageError("the file cannot be opened", file=path, found=fault.strerror) from fault
    try:  # the body's own OSErrors pass: they may be about another file
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise error("this is not a regular file", file=path, expected="a regular file",
                        found=stat.filemode(state.st_mode))
        yield descriptor, state
    finally:
        os.close(descriptor)


def read_into(descriptor: int, view: memoryview, offset: int, *, file: Any, error: type[GlmcError]) -> None:
    """Fill `view` (bytes) from `offset` (bytes) of the file.

    Raises `error` when the file ends before, StorageError when the system cannot read.
    """
    done = 0
    while done < len(view):
        try:
            count = os.preadv(descriptor, [view[done:done + (1 << 30)]], offset + done)
        except OSError as fault:
            raise StorageError("the file cannot be read", file=file, found=fault.strerror) from fault
        if count == 0:
            raise error("the file ends too early", file=file, expected=f"{offset + len(view)} bytes",
                        found=f"{offset + done} bytes")
        done += count


def read_range(descriptor: int, count: int, offset: int, *, file: Any, error: type[GlmcError]) -> bytes:
    """`count` bytes from `offset`. The caller has capped `count`. Raises `error` when the file ends before."""
    data = bytearray(count)
    read_into(descriptor, memoryview(data), offset, file=file, error=error)
    return bytes(data)
