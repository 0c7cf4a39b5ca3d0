"""The artefact on disk, writing half: built in a folder beside the target, synced, and renamed whole or not at all.

Order of the calls, which makes a crash leave the old state or the new one: lock, temporary folder, each file written
and synced, folders synced, renamed without replacing, parent synced.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from glmc.artifact import FOLDERS, LINKED, MAGIC, MANIFEST, acceptable_name, canonical, format_version, manifest_digest
from glmc.artifact_linked import link_weights
from glmc.artifact_weights import SHARD_BYTES, Layout, WeightWriter, create, finish, reserve_file, write_all
from glmc.checkpoint.regular_file import read_into, regular_file
from glmc.checkpoint.strict_json import parse_json
from glmc.errors import GlmcError, InternalError, OutputBusy, OutputExists, StorageError, UsageError

if TYPE_CHECKING:
    from glmc.checkpoint.folder import Checkpoint
    from glmc.checkpoint.safetensors_header import TensorInfo

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_PIECE = 1 << 20


class ArtifactWriter:
    """Write an artefact at `out`: add files, then `seal`. Leaving the `with` without sealing leaves nothing behind.

    `deadline` is how long to wait, in seconds, for another writer of the same output. On entering: OutputExists when
    the target is there, OutputBusy when the deadline passes, StorageError when the system refuses.
    """

    def __init__(self, out: Any, deadline: float = 600.0) -> None:
        out = Path(out)
        if not out.name or out.name in (".", ".."):
            raise UsageError("the output needs a name", file=out)
        self.out = out
        self.folder = out.parent / f".{out.name}.{os.getpid()}.tmp"
        self._deadline = deadline
        self._lock = -1
        self._sealed = False
        self._files: dict[str, dict[str, Any]] = {}
        self._weights: WeightWriter | None = None
        self._needed = 0

    def __enter__(self) -> ArtifactWriter:
        try:
            self._refuse_existing()
            self._take_lock()
            self._refuse_existing()  # again: the one that held the lock may have made it
            self._sweep()
            os.mkdir(self.folder)
        except BaseException as fault:
            self._release()
            if isinstance(fault, OSError):
                raise self._storage_error(fault) from fault
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            if self._weights is not None:
                self._weights.abandon()
            if self._sealed:
                return
            if fault is None:
                fault = InternalError("the artefact was never sealed", file=self.out)
            raised = self._storage_error(fault) if isinstance(fault, OSError) else fault
            self._remove(self.folder, raised)
            if raised is not fault:
                raise raised from fault
            if kind is None:
                raise raised
        finally:
            self._release()

    def reserve(self, total_bytes: int) -> None:
        """Check that the file system has room for `total_bytes` before the work starts. Raises StorageError."""
        self._needed = total_bytes
        free = shutil.disk_usage(self.folder).free
        if free < total_bytes:
            raise StorageError("there is not enough space for the artefact", file=self.out.parent,
                               expected=f"{total_bytes} bytes free", found=f"{free} bytes free")

    def add_json(self, name: str, value: Any) -> None:
        """Write `value` as canonical JSON. Raises InternalError when it is no strict JSON object."""
        self.add_bytes(name, _strict(name, value))

    def add_bytes(self, name: str, data: bytes) -> None:
        """Write one file. Raises InternalError for a name outside the alphabet or given twice."""
        descriptor = self._create(name)
        try:
            reserve_file(descriptor, len(data))
            write_all(descriptor, memoryview(data), 0)
        except BaseException:
            os.close(descriptor)
            raise
        finish(descriptor)
        self._files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def add_file(self, name: str, source: Any) -> None:
        """Copy the regular file `source`, holding 1 MiB. Raises StorageError when it cannot be read or shrinks."""
        total = hashlib.sha256()
        with regular_file(source, error=StorageError) as (reader, state):
            size = state.st_size
            descriptor = self._create(name)
            try:
                reserve_file(descriptor, size)
                piece = memoryview(bytearray(min(_PIECE, size)))
                for start in range(0, size, _PIECE):
                    part = piece[:min(_PIECE, size - start)]
                    read_into(reader, part, start, file=source, error=StorageError)
                    write_all(descriptor, part, start)
                    total.update(part)
            except BaseException:
                os.close(descriptor)
                raise
            finish(descriptor)
        self._files[name] = {"bytes": size, "sha256": total.hexdigest()}

    def weights(self, layout: Layout, shard_bytes: int = SHARD_BYTES) -> WeightWriter:
        """The writer of the weight files for `layout`: (name, dtype such as "BF16", shape) of every tensor, once."""
        if self._weights is not None:
            raise InternalError("an artefact has one layout of weights", file=self.out)
        self._weights = WeightWriter(self.folder, layout, shard_bytes)
        self.reserve(self._weights.total_bytes)
        return self._weights

    def link(self, weights: Mapping[str, TensorInfo], checkpoint: Checkpoint) -> dict[str, tuple[str, int, int]]:
        """Share the files that hold `weights` with the checkpoint; call it once, before it is read. See `link_weights`.
        Returns of each weight its file here, its first byte there, and how many bytes it has."""
        table, files = link_weights(self.folder, weights, checkpoint)
        self.add_json(LINKED, table)
        self._files.update(files)
        return {name: (entry["file"], entry["offset"], entry["bytes"]) for name, entry in table["weights"].items()}

    def seal(self, manifest: dict[str, Any], check: Callable[[], None] | None = None) -> Path:
        """Write the manifest, make all durable, and publish under the target's name, which is returned.

        `manifest` holds the caller's fields; format_version, magic, files and digest are added. `check` runs last
        before publishing, for `Checkpoint.check_unchanged`. Raises InternalError, OutputExists, what `check` raises.
        """
        own = {"magic": MAGIC, "format_version": format_version(self._files), "files": self._files}
        if set(manifest) & {*own, "digest"}:
            raise InternalError("the manifest may not name the format's own fields", found=sorted(manifest))
        if self._weights is not None:
            self._weights.close()
            self._files.update(self._weights.files)
        whole = {**manifest, **own}
        whole = parse_json(_strict(MANIFEST, whole), error=InternalError)
        whole["digest"] = manifest_digest(whole)
        self.add_bytes(MANIFEST, canonical(whole))
        for place in (*(self.folder / name for name in FOLDERS), self.folder):
            if place.is_dir():
                _sync_folder(place)
        if check is not None:
            check()
        self._publish()
        return self.out

    def _publish(self) -> None:
        try:
            rename_new(self.folder, self.out)
        except FileExistsError as fault:
            raise OutputExists("the output appeared while it was being made", file=self.out) from fault
        try:
            _sync_folder(self.out.parent)
        except BaseException:
            os.rename(self.out, self.folder)  # not known to be durable: discarded, never tried again
            raise
        self._sealed = True

    def _create(self, name: str) -> int:
        if not acceptable_name(name) or name in self._files or name.startswith(("weights-", "linked-")):
            raise InternalError("a file of an artefact may not be called so, or is there already", field=name)
        path = self.folder / name
        if path.parent != self.folder:
            path.parent.mkdir(exist_ok=True)
        return create(path)

    def _refuse_existing(self) -> None:
        if os.path.lexists(self.out):
            raise OutputExists("the output exists already", file=self.out)

    def _take_lock(self) -> None:
        path = self.out.parent / f".{self.out.name}.lock"
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        end = time.monotonic() + self._deadline
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    holder = os.pread(self._lock, 20, 0).decode("ascii", "replace").strip()
                    raise OutputBusy("another process is writing this output", file=self.out,
                                     expected=f"free within {self._deadline:g} s",
                                     found=f"held by process {holder or 'unknown'}") from None
                time.sleep(0.05)
            except OSError as fault:
                if fault.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                    raise
                warnings.warn(f"{self.out.parent} cannot lock files; two writers at once would both work, and one wins "
                              "by the rename", stacklevel=3)
                return
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)  # which also unlocks; the lock file stays, or two could hold two of them
            self._lock = -1

    def _sweep(self) -> None:
        pattern = re.compile(re.escape(f".{self.out.name}.") + r"(\d{1,10})\.tmp")
        for entry in os.scandir(self.out.parent):
            match = pattern.fullmatch(entry.name)
            if match and entry.is_dir(follow_symlinks=False) and not _alive_elsewhere(int(match[1])):
                shutil.rmtree(entry.path)

    def _remove(self, folder: Path, fault: BaseException) -> None:
        try:
            if os.path.lexists(folder):
                shutil.rmtree(folder)
        except OSError as second:
            fault.add_note(f"the temporary folder {folder} could not be removed: {second.strerror}")

    def _storage_error(self, fault: OSError) -> GlmcError:
        free: int | None = None
        try:
            free = shutil.disk_usage(self.out.parent).free
        except OSError as second:
            fault.add_note(f"the free space is unknown: {second.strerror}")
        full = fault.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return StorageError(
            "there is not enough space for the artefact" if full else "the artefact cannot be written",
            file=fault.filename or self.out,
            expected=f"{self._needed} bytes free" if full and self._needed else None,
            found=f"{fault.strerror}" + (f"; {free} bytes free" if free is not None else ""))


def _strict(name: str, value: Any) -> bytes:
    try:
        data = canonical(value)
    except (TypeError, ValueError) as fault:
        raise InternalError("a value cannot be written as strict JSON", field=name, found=str(fault)) from fault
    parse_json(data, error=InternalError, file=name)  # what is written can be read
    return data


def _alive_elsewhere(pid: int) -> bool:
    if pid == os.getpid():
        return False  # we hold the lock and have not begun: it is a leftover under a reused number
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename_new(source: Path, target: Path) -> None:
    """Rename a folder, refusing an existing target with FileExistsError.

    Uses renameat2(RENAME_NOREPLACE). Where the C library or the file system lacks it, the target is looked for and then
    renamed; between the two only a writer that ignores the lock could slip in, and then only with an empty folder.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is not None:
        if call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE) == 0:
            return
        number = ctypes.get_errno()
        if number not in (errno.ENOSYS, errno.EINVAL):
            raise OSError(number, os.strerror(number), str(target))
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    os.rename(source, target)
