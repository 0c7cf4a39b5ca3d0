"""Artefacts for machines that are not here, and what torch would say of such a machine."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import models
import once
import torch

import glmc
from glmc.artifact import Artifact, canonical, manifest_digest
from glmc.kernels import driver


@functools.cache
def made(variant: str, target: str, **changes: Any) -> tuple[dict[str, Any], torch.nn.Module, Artifact]:
    """A published variant compiled for a target, once a process: its config, the published model, the artefact."""
    config, model, checkpoint = models.published(variant, **changes)
    out = Path(tempfile.mkdtemp(dir=models.scratch())) / f"{variant}.glmc"
    with once.alike((checkpoint / "config.json").read_text()):
        return config, model, glmc.compile(checkpoint, out, target=target, max_len=models.MAX_LEN, max_batch=2)


class Properties:
    """What torch says of a GPU, as far as a verdict asks."""

    def __init__(self, major: int, minor: int) -> None:
        self.major, self.minor = major, minor


def pretend(patch: Any, cuda: tuple[int, int] = (13, 0), free: int = 80 << 30, arch: tuple[int, int] = (9, 0)) -> None:
    """Have torch see one GPU, by default an H100 with a new driver. cuda: what the driver offers. free: bytes."""
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "device_count", lambda: 1)
    patch.setattr(torch.cuda, "get_device_name", lambda n: "NVIDIA H100")
    patch.setattr(torch.cuda, "get_device_properties", lambda n: Properties(*arch))
    patch.setattr(torch.cuda, "mem_get_info", lambda n: (free, 80 << 30))
    patch.setattr(driver, "version", lambda: cuda)


def changed(artifact: Artifact, folder: Path, name: str, data: bytes, sealed: bool) -> Path:
    """A copy of an artefact in which a file is another. sealed: the manifest says so, as if it had been made that way."""
    shutil.copytree(artifact.folder, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["digest"] = manifest_digest(manifest)
    for path, content in ((name, data), *((("manifest.json", canonical(manifest)),) if sealed else ())):
        (folder / path).chmod(0o644)
        (folder / path).write_bytes(content)
    return folder
