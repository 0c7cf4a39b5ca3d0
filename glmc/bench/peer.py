"""Who is measured beside an artefact, as `--against` names them, and why one cannot be."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmc.artifact import MANIFEST, Artifact
from glmc.errors import MissingPeer, UsageError

KINDS = ("eager", "inductor", "aoti", "llama-bench:MODEL.gguf", "http://HOST/v1#MODEL", "ARTEFACT")


@dataclass(frozen=True)
class Contender:
    """name: in the report. kind: artifact, eager, inductor, aoti, endpoint or llama-bench. told: what its process must know."""

    name: str
    kind: str
    told: dict[str, Any] = field(default_factory=dict)


def contenders(out: Path, against: Sequence[str], checkpoint: Path | None, threads: int, device: str | None) -> list[Contender]:
    """The artefact, called "glmc", then each of `against`.

    checkpoint: where eager, inductor and aoti have their weights from; its digest is compared with the artefact's source.
    Raises UsageError, MissingPeer with how to get one, and what opening an artefact raises.
    """
    found = [Contender("glmc", "artifact", {"path": str(out), "threads": threads, "device": device})]
    found += [_contender(word, out, checkpoint, threads, device) for word in against]
    names = [one.name for one in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError("a contender is named twice", field="--against", found=", ".join(twice))
    return found


def home(target: str, device: str | None) -> str:
    """torch's device for those who run beside an artefact for `target`; what only checks on the CPU runs there."""
    kind = {"cuda": "cuda", "rocm": "cuda", "npu": "npu"}.get(target.partition(":")[0], "cpu")
    return device if device and device.partition(":")[0] in ("cuda", "npu", "cpu") else "cpu" if device else kind


def _contender(word: str, out: Path, checkpoint: Path | None, threads: int, device: str | None) -> Contender:
    if word in ("eager", "inductor", "aoti"):
        if word == "inductor":
            _can_build()
        if importlib.util.find_spec("transformers") is None:
            raise MissingPeer("transformers is not installed", field="--against", found=word,
                              hint="pip install transformers")
        manifest = Artifact.open(out).manifest
        return Contender(word, word, {
            "checkpoint": str(_same(word, manifest["source"], checkpoint)), "threads": threads,
            "device": home(manifest["target"], device), "dtype": manifest["dtype"], "bounds": manifest["bounds"]})
    if word.startswith(("http://", "https://")):
        url, _, served = word.partition("#")
        if re.fullmatch(r"https?://[^/\s@]+(/\S*)?", url) is None:
            raise UsageError("this is no address of an endpoint", field="--against", found=word, expected=KINDS[4])
        return Contender(word, "endpoint", {"url": url.rstrip("/"), "model": served or None})
    if word.partition(":")[0] == "llama-bench":
        model = Path(word.partition(":")[2])
        program = shutil.which("llama-bench")
        if program is None:
            raise MissingPeer("llama-bench is not on PATH", field="--against", found=word,
                              hint="build llama.cpp, or take one of its releases, and put the folder of llama-bench on PATH")
        if not model.is_file():
            raise UsageError("llama-bench needs a model of its own format", field="--against", found=word, expected=KINDS[3])
        return Contender(f"llama-bench:{model.name}", "llama-bench",
                         {"program": program, "model": str(model.absolute()), "threads": threads})
    if (Path(word) / MANIFEST).is_file():
        return Contender(Path(word).name, "artifact", {"path": word, "threads": threads, "device": device})
    raise UsageError("no contender is called so, and no artefact is there", field="--against", found=word,
                     expected=", ".join(KINDS))


def _can_build() -> None:
    """Raises MissingPeer where torch.compile cannot build the extensions that it makes."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        raise MissingPeer("inductor needs a C++ compiler", field="--against", found="inductor", hint="install g++ 11 or later")
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        raise MissingPeer("inductor needs Python's headers", field="--against", found="inductor",
                          hint="install them: python3-dev on Debian and Ubuntu")


def _same(word: str, source: str, checkpoint: Path | None) -> Path:
    """The checkpoint, which must be the one that the artefact was compiled from."""
    if checkpoint is None:
        raise UsageError(f"{word} needs the checkpoint that the artefact was compiled from", field="--checkpoint",
                         expected="--checkpoint FOLDER")
    from glmc.checkpoint.components import open_checkpoint

    there = open_checkpoint(checkpoint).digest()
    if source != there:
        raise UsageError("the artefact was compiled from another checkpoint: this would be other work", file=checkpoint,
                         field="--checkpoint", expected=f"digest {source}", found=there)
    return checkpoint.absolute()
