"""The artefact on disk, reading half: nothing in it is used before its bytes agree with the manifest's digests.

Opening needs no torch. The writing half is `glmc.artifact_write`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmc.checkpoint.regular_file import read_into, read_range, regular_file
from glmc.checkpoint.strict_json import parse_json
from glmc.errors import ArtifactError, DamagedArtifact, GlmcError, IncompatibleArtifact, StorageError, UsageError

if TYPE_CHECKING:
    import torch

    from glmc.artifact_linked import Linked
    from glmc.artifact_load import Place, Take

MAGIC = "glmc-artifact"
FORMAT_VERSION = 1
LINKED_VERSION = 2
MANIFEST, LINKED = "manifest.json", "linked.json"
MAX_MANIFEST_BYTES = 64 << 20
FOLDERS = ("kernels", "regions")
_NAME = re.compile(rf"(?:(?:{'|'.join(FOLDERS)})/)?[A-Za-z0-9][A-Za-z0-9._-]{{0,150}}")
_SHARD = re.compile(r"weights-\d{5}\.safetensors")
LINKED_SHARD = re.compile(r"linked-\d{5}\.safetensors")
HEX = re.compile(r"[0-9a-f]{64}")
_PIECE = 2 << 20  # bytes read before they are hashed: few calls, and still near the core when hashed


def canonical(value: Any) -> bytes:
    """The one spelling of a JSON value in an artefact: sorted keys, indent 1, ASCII, a final newline."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")


def manifest_digest(manifest: dict[str, Any]) -> str:
    """SHA-256 (hex) of the canonical manifest without its field "digest". This rule is the same in every format."""
    return hashlib.sha256(canonical({key: manifest[key] for key in manifest if key != "digest"})).hexdigest()


def format_version(files: Mapping[str, Any]) -> int:
    """The format of an artefact of these files: a glmc that knows no linked files refuses one that has them, by its format."""
    return LINKED_VERSION if LINKED in files else FORMAT_VERSION


def acceptable_name(name: Any) -> bool:
    """Whether a file of an artefact may be called so: flat, or one of `FOLDERS` and flat; a small alphabet."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None and ".." not in name and name not in FOLDERS


class Artifact:
    """An opened artefact: `.folder`, `.manifest` (dict), `.files` (name to {"bytes", "sha256"}).

    A linked file is shared with the checkpoint and has {"bytes", "linked": True}: its tensors have digests, in linked.json.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self.files: dict[str, dict[str, Any]] = manifest["files"]
        self._verified: set[str] = set()
        self._linked: tuple[Linked, ...] | None = None

    @classmethod
    def open(cls, folder: Any) -> Artifact:
        """Check the manifest against its own digest and against the folder's list of files and sizes.

        Raises ArtifactError when there is none, DamagedArtifact when something differs, IncompatibleArtifact when the
        manifest is intact but of another format version, StorageError when the system refuses.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise ArtifactError("there is no artefact here", file=folder, expected="a folder made by `glmc compile`")
        manifest = _manifest(folder / MANIFEST)
        files = manifest.get("files")
        if not isinstance(files, dict) or not all(acceptable_name(name) and name != MANIFEST for name in files):
            raise DamagedArtifact("the manifest's list of files is not acceptable", file=folder / MANIFEST,
                                  field="files", expected="plain file names")
        for name, entry in files.items():
            if not _acceptable(name, entry) or ("linked" in entry and LINKED not in files):
                raise DamagedArtifact("a file's entry is not acceptable", file=folder / MANIFEST, field=name,
                                      expected="bytes and sha256", found=entry)
        sizes = _scan(folder)
        sizes.pop(MANIFEST, None)
        lost, extra = sorted(set(files) - set(sizes)), sorted(set(sizes) - set(files))
        if lost or extra:
            raise DamagedArtifact("the folder does not hold the files that the manifest lists", file=folder,
                                  expected=f"also {', '.join(lost)}" if lost else "nothing else",
                                  found=f"also {', '.join(extra)}" if extra else "these are missing")
        for name, size in sizes.items():
            if size != files[name]["bytes"]:
                raise DamagedArtifact("a file has another size", file=folder / name,
                                      expected=f"{files[name]['bytes']} bytes", found=f"{size} bytes")
        return cls(folder, manifest)

    def read(self, name: str) -> bytes:
        """The bytes of file `name`, hashed as they are returned. Raises UsageError, DamagedArtifact, StorageError."""
        data = bytearray(self._entry(name)["bytes"])
        self.read_verified(name, [memoryview(data)])
        return bytes(data)

    def json(self, name: str) -> dict[str, Any]:
        """The object in file `name`, verified. Raises what `read` raises."""
        return parse_json(self.read(name), error=DamagedArtifact, file=self.folder / name)

    def path(self, name: str) -> Path:
        """The path of file `name` after its digest was compared, once an opening; for loaders that need a path.

        Nothing holds the file between the comparison and its use by the caller.
        """
        self.hash_file(name)
        return self.folder / name

    def verify(self, threads: int | None = None) -> None:
        """Compare every file with its digest, in a pool. Raises DamagedArtifact that names all that differ."""
        def fault(check: Callable[[], None]) -> GlmcError | None:
            try:
                check()
            except DamagedArtifact as found:
                return found
            return None

        self._verified.clear()
        with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
            whole = [partial(self.hash_file, name) for name in sorted(set(self.files) - set(self.linked_files()))]
            faults = [found for found in pool.map(fault, whole) if found is not None]
            if all(Path(found.file).name != LINKED for found in faults):
                parts = [partial(one.check, self.folder, self.files[one.file]["bytes"], None) for one in self.linked()]
                faults += [found for found in pool.map(fault, parts) if found is not None]
        if len(faults) == 1:
            raise faults[0]
        if faults:
            names = ", ".join(str(Path(found.file).relative_to(self.folder)) + (f" ({found.field})" if found.field else "")
                              for found in faults)
            raise DamagedArtifact("files differ from their digests", file=self.folder, found=names)

    def shards(self) -> list[str]:
        """The names of the weight files, in order."""
        return sorted(name for name in self.files if _SHARD.fullmatch(name))

    def linked_files(self) -> list[str]:
        """The names of the files that are shared with the checkpoint, in order."""
        return sorted(name for name, entry in self.files.items() if "linked" in entry)

    def linked(self) -> tuple[Linked, ...]:
        """The weights in the linked files, in the order of their bytes. Raises what `read` raises."""
        if self._linked is None:
            from glmc.artifact_linked import read_table

            self._linked = read_table(self) if LINKED in self.files else ()
        return self._linked

    def weight_bytes(self) -> int:
        """What loading the weights takes, in bytes, headers included. Raises what `read` raises."""
        return sum(self.files[name]["bytes"] for name in self.shards()) + sum(one.nbytes for one in self.linked())

    def load_weights(self, threads: int | None = None, place: Place | None = None, wanted: Set[str] | None = None,
                     take: Take | None = None) -> dict[str, torch.Tensor]:
        """Every weight by name, 64-byte aligned, hashed while it is read, into private memory on the CPU or where `place` says.

        Shards are read by `threads` threads (default: the CPUs), of linked files only what is a weight. Nothing is handed out
        before every digest was compared. wanted: only these, and no shard that has none of them is read. take: what becomes of
        each, which is all that stays of a shard. Raises DamagedArtifact, StorageError.
        """
        from glmc.artifact_linked import readers
        from glmc.artifact_load import PrivateMemory, load_shards

        return load_shards(self, threads, place or PrivateMemory, readers(self, place or PrivateMemory, wanted), wanted, take)

    def hash_file(self, name: str) -> None:
        """Compare file `name` with its digest unless this object did so before; holds 2 MiB."""
        if name not in self._verified:
            self.read_verified(name, None)
            self._verified.add(name)

    def read_verified(self, name: str, rooms: Iterable[memoryview] | None) -> None:
        """Read file `name` into `rooms`, as `hash_range` does, and compare the digest; `None` only compares.

        Raises UsageError for a linked file, which has no digest of the whole.
        """
        entry, path = self._entry(name), self.folder / name
        if "linked" in entry:
            raise UsageError("a linked file is covered tensor by tensor, not as a whole", file=path, expected=LINKED)
        found = hash_range(path, entry["bytes"], 0, entry["bytes"], rooms)
        if found != entry["sha256"]:
            raise DamagedArtifact("a file differs from its digest", file=path, expected=f"sha256 {entry['sha256']}",
                                  found=f"sha256 {found}")

    def _entry(self, name: str) -> dict[str, Any]:
        if name not in self.files:
            raise UsageError("the artefact holds no such file", file=self.folder, field=name,
                             expected=sorted(self.files))
        return self.files[name]


def hash_range(path: Path, size: int, begin: int, count: int, rooms: Iterable[memoryview] | None) -> str:
    """SHA-256 (hex) of `count` bytes from `begin` of a regular file of `size` bytes, read into `rooms` unless they are None.

    rooms: memory for `count` bytes in all; each is full before the next is asked for. Raises DamagedArtifact when the file
    has another size or is no such file, StorageError.
    """
    total, at = hashlib.sha256(), begin
    if rooms is None:
        scratch = memoryview(bytearray(min(_PIECE, count)))
        rooms = (scratch[:min(_PIECE, count - start)] for start in range(0, count, _PIECE))
    with regular_file(path, error=DamagedArtifact, follow=False) as (descriptor, state):
        if state.st_size != size:
            raise DamagedArtifact("a file has another size", file=path, expected=f"{size} bytes",
                                  found=f"{state.st_size} bytes")
        for room in rooms:
            for start in range(0, len(room), _PIECE):
                piece = room[start:start + _PIECE]
                read_into(descriptor, piece, at, file=path, error=DamagedArtifact)
                total.update(piece)
                at += len(piece)
    return total.hexdigest()


def _acceptable(name: str, entry: Any) -> bool:
    if not isinstance(entry, dict) or type(entry.get("bytes")) is not int or entry["bytes"] < 0:
        return False
    if LINKED_SHARD.fullmatch(name):
        return set(entry) == {"bytes", "linked"} and entry["linked"] is True
    digest = entry.get("sha256")
    return set(entry) == {"bytes", "sha256"} and isinstance(digest, str) and HEX.fullmatch(digest) is not None


def _manifest(path: Path) -> dict[str, Any]:
    with regular_file(path, error=DamagedArtifact, follow=False) as (descriptor, state):
        if state.st_size > MAX_MANIFEST_BYTES:
            raise DamagedArtifact("the manifest is too large", file=path,
                                  expected=f"at most {MAX_MANIFEST_BYTES} bytes", found=f"{state.st_size} bytes")
        data = read_range(descriptor, state.st_size, 0, file=path, error=DamagedArtifact)
    manifest = parse_json(data, error=DamagedArtifact, file=path)
    # The bytes and not only the values: a flip in white space is damage too. The digest comes before the version, so
    # that a flipped version reads as damage and an intact newer manifest as incompatible.
    if canonical(manifest) != data or manifest.get("magic") != MAGIC:
        raise DamagedArtifact("the manifest is not written as glmc writes it", file=path)
    digest = manifest_digest(manifest)
    if manifest.get("digest") != digest:
        raise DamagedArtifact("the manifest differs from its own digest", file=path, field="digest",
                              expected=digest, found=manifest.get("digest"))
    if type(manifest.get("format_version")) is not int:
        raise DamagedArtifact("the manifest has no format version", file=path, field="format_version",
                              found=manifest.get("format_version"))
    files = manifest.get("files")
    version = format_version(files if isinstance(files, dict) else {})
    if manifest["format_version"] != version:
        raise IncompatibleArtifact("the artefact has another format", file=path, field="format_version",
                                   expected=version, found=manifest["format_version"],
                                   hint="compile it again with this version of glmc")
    return manifest


def _scan(folder: Path) -> dict[str, int]:
    sizes: dict[str, int] = {}
    try:
        for prefix in ("", *FOLDERS):
            place = folder / prefix if prefix else folder
            if prefix and not os.path.lexists(place):
                continue
            if prefix and not stat.S_ISDIR(os.lstat(place).st_mode):
                raise DamagedArtifact("this is not a folder", file=place)
            for entry in os.scandir(place):
                name = f"{prefix}/{entry.name}" if prefix else entry.name
                if not prefix and entry.name in FOLDERS:
                    continue
                state = entry.stat(follow_symlinks=False)
                if not stat.S_ISREG(state.st_mode):
                    raise DamagedArtifact("the artefact holds something that is not a regular file", file=place,
                                          field=entry.name, found=stat.filemode(state.st_mode))
                sizes[name] = state.st_size
    except OSError as fault:
        raise StorageError("the artefact cannot be listed", file=folder, found=fault.strerror) from fault
    return sizes
