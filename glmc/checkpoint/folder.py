"""A Hugging Face checkpoint folder: its config, where every tensor lies, and whether it changed meanwhile."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmc.checkpoint.regular_file import read_into, read_range, regular_file
from glmc.checkpoint.safetensors_header import TensorInfo, read_header_and_digest
from glmc.checkpoint.strict_json import load_json
from glmc.checkpoint.tensor_bytes import bytes_of, torch_dtype
from glmc.errors import (
    CheckpointChanged,
    CheckpointError,
    ConfigError,
    DamagedShard,
    GlmcError,
    StorageError,
    WeightMismatch,
    WeightMissing,
    printable,
)

if TYPE_CHECKING:
    import torch

MAX_CONFIG_BYTES = 16 << 20
MAX_INDEX_BYTES = 64 << 20
MAX_EXTRA_BYTES = 128 << 20
STEM = "model"
"""How files of weights are called: STEM.safetensors, or STEM.safetensors.index.json beside STEM-00001-of-00009.safetensors."""
EXTRA = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "generation_config.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model",
    "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json",
)
_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors")
_LISTED = 200
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}


def read_config(path_or_folder: Any) -> dict[str, Any]:
    """config.json as a dict, from the file itself or from the folder that holds it. Raises ConfigError."""
    path = Path(path_or_folder)
    return load_json(path / "config.json" if path.is_dir() else path, MAX_CONFIG_BYTES, error=ConfigError)


def listing(problems: list[str]) -> str:
    """The problems as indented lines, cut after 200."""
    lines = [f"  - {printable(problem)}" for problem in problems[:_LISTED]]
    return "\n".join(lines + [f"  - and {len(problems) - _LISTED} more"] * (len(problems) > _LISTED))


class Checkpoint:
    """`.folder`, `.config` (config.json), `.tensors` (name to TensorInfo). Open it with `Checkpoint.open`."""

    def __init__(self, folder: Path, config: dict[str, Any], tensors: dict[str, TensorInfo],
                 headers: dict[str, str], others: list[str]) -> None:
        self.folder, self.config, self.tensors = folder, config, tensors
        self._headers, self._others = headers, others
        self._states = {name: _state(folder / name) for name in (*headers, *others)}
        self._first = self.fingerprint()

    @classmethod
    def open(cls, folder: Any, stem: str = STEM) -> Checkpoint:
        """Read config.json and every shard's header; no tensor is read. stem: of the files of weights.

        Raises ConfigError, DamagedShard with every problem of the shards and of the index at once, CheckpointError when
        the folder or its weights are not there, StorageError when the system refuses.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise CheckpointError("there is no such checkpoint folder", file=folder,
                                  hint="give the folder that holds config.json and the safetensors files")
        config = read_config(folder)
        others = ["config.json", *(name for name in EXTRA if (folder / name).exists())]
        single, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
        if os.path.lexists(folder / index):
            return cls(folder, config, *_sharded(folder, stem), [*others, index])
        if not os.path.lexists(folder / single):
            raise CheckpointError("the folder holds no safetensors weights", file=folder,
                                  expected=f"{single} or {index}",
                                  hint="`glmc plan` needs only config.json; .bin and .pt files are never opened")
        tensors, digest = read_header_and_digest(folder / single)
        return cls(folder, config, tensors, {single: digest}, others)

    def info(self, name: str) -> TensorInfo:
        """Where tensor `name` lies. Raises WeightMissing."""
        if name not in self.tensors:
            raise WeightMissing("the checkpoint has no such tensor", file=self.folder, field=name)
        return self.tensors[name]

    def read(self, name: str) -> torch.Tensor:
        """Tensor `name` in private memory, in its own shape and dtype; no map, so nothing can change it later.

        Raises WeightMissing, CheckpointChanged when the shard is no longer the file that was opened, StorageError.
        """
        import torch

        info = self.info(name)
        out = torch.empty(info.shape, dtype=torch_dtype(info.dtype))
        self.read_rows(name, out, 0)
        return out

    def read_rows(self, name: str, out: torch.Tensor, first: int) -> None:
        """Fill `out` (contiguous, the tensor's own dtype) from row `first` (along dim 0) of tensor `name`."""
        info = self.info(name)
        if not out.is_contiguous() or out.dtype != torch_dtype(info.dtype):
            raise WeightMismatch("the place does not fit the tensor", file=info.file, field=name,
                                 expected=info.dtype, found=str(out.dtype))
        begin = first * (info.nbytes // info.shape[0]) if first else 0
        size = out.numel() * out.element_size()
        if begin + size > info.nbytes:
            raise WeightMismatch("the place is larger than the tensor", file=info.file, field=name,
                                 expected=f"at most {info.nbytes - begin} bytes", found=f"{size} bytes")
        with regular_file(info.file, error=CheckpointChanged) as (descriptor, state):
            if _identity(state) != self._states[info.file.name]:
                raise CheckpointChanged("the shard was edited or replaced during the compilation", file=info.file)
            if size:
                read_into(descriptor, bytes_of(out), info.offset + begin, file=info.file, error=CheckpointChanged)

    def link(self, shard: Path, place: Path) -> int:
        """Make `place` a second name, a hard link, of the file `shard`, synced; returns its size in bytes.

        Linking gives a file another ctime, which is what `check_unchanged` compares from then on. So link before reading;
        that the header is the one that was opened is compared at the end as ever.
        Raises CheckpointChanged, StorageError where the file system makes no such link, OSError for other troubles of `place`.
        """
        with regular_file(shard, error=CheckpointChanged) as (descriptor, before):
            try:
                os.link(os.path.realpath(shard), place, follow_symlinks=False)
            except OSError as fault:
                if fault.errno not in _NO_LINK:
                    raise
                raise StorageError("a file of the checkpoint cannot be shared with the artefact", file=shard,
                                   expected="both on one file system that makes hard links", found=fault.strerror,
                                   hint="--weights copy copies the weights") from fault
            after = os.fstat(descriptor)
            same = [_identity(state)[:2] + _identity(state)[3:] for state in (before, after, os.lstat(place))]
            if _identity(before) != self._states[shard.name] or len(set(same)) != 1:
                raise CheckpointChanged("the shard was edited or replaced during the compilation", file=shard)
            os.fsync(descriptor)
        self._states[shard.name] = _identity(after)
        self._first[shard.name] = (*_identity(after), self._first[shard.name][-1])
        return after.st_size

    def fingerprint(self) -> dict[str, tuple]:
        """Per file: size (bytes), mtime and ctime (ns), device, inode, and for shards the header's SHA-256."""
        found: dict[str, tuple] = {}
        for name in (*self._headers, *self._others):
            path = self.folder / name
            digest = read_header_and_digest(path)[1] if name in self._headers else ""
            found[name] = (*_state(path), digest)
        return found

    def digest(self) -> str:
        """SHA-256 (hex) of the config and of the headers: the same for a copy elsewhere; tensor bytes are not in it."""
        total = hashlib.sha256()
        with regular_file(self.folder / "config.json", error=ConfigError) as (descriptor, state):
            total.update(hashlib.sha256(
                read_range(descriptor, state.st_size, 0, file=self.folder, error=ConfigError)).digest())
        for name in sorted(self._headers):
            total.update(f"{name} {self._headers[name]}\n".encode())
        return total.hexdigest()

    def check_unchanged(self) -> None:
        """Compare every file with what was opened. Raises CheckpointChanged naming those that differ.

        An edit is seen by its size, times or header; one that forges the kernel's ctime is not.
        """
        try:
            now = self.fingerprint()
        except GlmcError as fault:
            raise CheckpointChanged("a file of the checkpoint went away or broke during the compilation",
                                    file=fault.file or self.folder, found=fault.what) from fault
        changed = sorted(name for name in now if now[name] != self._first[name])
        if changed:
            raise CheckpointChanged("files of the checkpoint were edited during the compilation", file=self.folder,
                                    field=", ".join(changed), hint="compile again when nothing writes to the folder")

    def extra_files(self) -> dict[str, Path]:
        """Tokenizer, processor and generation files that are there, by name. Raises CheckpointError when one is too
        large (128 MiB) or is no regular file."""
        found = {}
        for name in self._others:
            if name in EXTRA:
                with regular_file(self.folder / name, error=CheckpointError) as (_, state):
                    if state.st_size > MAX_EXTRA_BYTES:
                        raise CheckpointError("the file is too large", file=self.folder / name,
                                              expected=f"at most {MAX_EXTRA_BYTES} bytes", found=state.st_size)
                found[name] = self.folder / name
        return found


def _identity(state: os.stat_result) -> tuple[int, ...]:
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_dev, state.st_ino


def _state(path: Path) -> tuple[int, ...]:
    try:
        return _identity(os.stat(path))
    except FileNotFoundError as fault:
        raise CheckpointChanged("a file of the checkpoint went away", file=path) from fault
    except OSError as fault:
        raise StorageError("the file cannot be examined", file=path, found=fault.strerror) from fault


def _sharded(folder: Path, stem: str) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    path = folder / f"{stem}.safetensors.index.json"
    index = load_json(path, MAX_INDEX_BYTES, error=DamagedShard)
    mapped, metadata = index.get("weight_map"), index.get("metadata", {})
    if not isinstance(mapped, dict) or not mapped or not all(isinstance(shard, str) for shard in mapped.values()):
        raise DamagedShard("the index has no table of tensors", file=path, field="weight_map",
                           expected="an object that gives each tensor its file", found=type(mapped).__name__)
    if not isinstance(metadata, dict):
        raise DamagedShard("the index's metadata is no object", file=path, field="metadata",
                           expected="an object", found=type(metadata).__name__)
    problems: list[str] = []
    tensors: dict[str, TensorInfo] = {}
    headers: dict[str, str] = {}
    shards = sorted(set(mapped.values()))
    seen: dict[str, str] = {}
    for shard in shards:
        if not _SHARD.fullmatch(shard):
            problems.append(f"{shard}: not a plain file name ending in .safetensors")
            continue
        try:
            inside, headers[shard] = read_header_and_digest(folder / shard)
        except DamagedShard as fault:
            facts = [f"{label} {value}" for label, value in (("field", fault.field), ("expected", fault.expected),
                                                             ("found", fault.found)) if value is not None]
            problems.append(f"{shard}: {fault.what} ({', '.join(facts)})")
            continue
        for name, info in inside.items():
            if name in seen:
                problems.append(f"{name}: stands in {seen[name]} and in {shard}")
            elif mapped.get(name) != shard:
                problems.append(f"{name}: stands in {shard}, but the index says {mapped.get(name, 'nothing')}")
            seen.setdefault(name, shard)
            tensors[name] = info
    problems += [f"{name}: the index says {shard}, but it is not there"
                 for name, shard in mapped.items() if shard in headers and name not in seen]
    extra = sorted(p.name for p in folder.glob(f"{stem}*.safetensors") if p.name not in shards)
    problems += [f"{name}: a shard that the index does not name" for name in extra]
    total = metadata.get("total_size")
    held = sum(info.nbytes for info in tensors.values())
    if total is not None and not problems and (isinstance(total, bool) or total != held):
        problems.append(f"metadata.total_size: expected {held}, found {total}")
    if problems:
        raise DamagedShard(f"the shards and their index do not agree:\n{listing(problems)}", file=path)
    return tensors, headers
