"""Every mistake glmc can name: one class each, with a stable code, an exit code and a cure.

Raise them with the facts as keywords; the sentence is composed here, once:

    raise ShapeMismatch("the tensor does not fit", file=path, field=name, expected=[4, 8], found=[8, 4])
"""

from __future__ import annotations

from typing import Any, ClassVar


def printable(value: Any) -> str:
    """`value` as text without control or bidirectional characters, so that a hostile name cannot steer a terminal."""
    text = value if isinstance(value, str) else str(value)
    clean = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return clean if len(clean) <= 400 else clean[:397] + "..."


class GlmcError(Exception):
    """Base of every foreseen fault. Not raised itself."""

    code: ClassVar[str] = "glmc"
    exit: ClassVar[int] = 70
    hint: str | None = None

    def __init__(self, what: str, *, file: Any = None, field: Any = None, expected: Any = None,
                 found: Any = None, hint: str | None = None) -> None:
        self.what = what
        self.file, self.field, self.expected, self.found = file, field, expected, found
        self.hint = hint or type(self).hint
        super().__init__(self.sentence())

    def sentence(self) -> str:
        """One paragraph: what, where, expected, found, hint."""
        parts = [printable(self.what) if "\n" not in self.what else self.what]
        for label, value in (("file", self.file), ("field", self.field),
                             ("expected", self.expected), ("found", self.found)):
            if value is not None:
                parts.append(f"  {label}: {printable(value)}")
        if self.hint:
            parts.append(f"  hint: {self.hint}")
        return "\n".join(parts)

    def to_json(self) -> dict[str, Any]:
        """The same facts for `--json`: code, exit, what, file, field, expected, found, hint."""
        text = {k: None if (v := getattr(self, k)) is None else printable(v)
                for k in ("file", "field", "expected", "found", "hint")}
        return {"code": self.code, "exit": self.exit, "what": self.what, **text}


class UsageError(GlmcError):
    """The call itself is wrong: an option, a name, or a request outside the artefact's bounds."""

    code, exit = "usage", 2


class OutputExists(UsageError):
    """The output folder is there already; glmc never overwrites one."""

    code = "output-exists"
    hint = "choose another -o, or remove the folder yourself"


class RequestOutOfBounds(UsageError):
    """A prompt, a token id or a batch lies outside what the artefact was compiled for."""

    code = "request-out-of-bounds"


class MediaError(UsageError):
    """An image or a video cannot be read, or is larger than what glmc reads."""

    code = "media"


class UnknownName(UsageError):
    """No fusion, kernel, error, knob or target has this name."""

    code = "unknown-name"


class UnsupportedTarget(UsageError):
    """The target is known but this build of glmc, or this machine, cannot compile for it."""

    code = "unsupported-target"


class MissingPackage(UsageError):
    """What was asked for needs a package that is not installed."""

    code = "missing-package"


class MissingPeer(UsageError):
    """Somebody to be measured against is not installed here."""

    code = "missing-peer"


class PeerFailed(UsageError):
    """Somebody who was measured failed, or answered other work than was asked for."""

    code = "peer-failed"


class OtherWork(UsageError):
    """Two reports are of different work, or of different machines: no figure of one can be compared with the other's."""

    code = "other-work"
    hint = "measure both again, alike in what is named"


class ReportError(UsageError):
    """A file is no benchmark report of this format, or one that was edited."""

    code = "report"
    hint = "`glmc bench` writes reports; docs/bench.md describes them"


class CheckpointError(GlmcError):
    """The checkpoint folder cannot be read as a Hugging Face GLM checkpoint."""

    code, exit = "checkpoint", 3


class ConfigError(CheckpointError):
    """A field of config.json is missing, absurd or contradicts another."""

    code = "config"


class UnknownFamily(CheckpointError):
    """config.json names a model_type that no file in glmc/families/ is called after."""

    code = "unknown-family"


class NotCompiled(CheckpointError):
    """glmc plans this model and does not compile it yet."""

    code = "not-compiled"
    hint = "`glmc plan` tells what is known of it"


class DamagedShard(CheckpointError):
    """A safetensors file is missing, truncated or breaks the format."""

    code = "damaged-shard"
    hint = "download the file again and compare its checksum with the publisher's"


class WeightMissing(CheckpointError):
    """Parameters of the architecture have no tensor in the checkpoint."""

    code = "weight-missing"


class WeightUnused(CheckpointError):
    """Tensors of the checkpoint are consumed by no parameter of the architecture."""

    code = "weight-unused"


class WeightMismatch(CheckpointError):
    """A tensor's shape or dtype is not what the architecture needs."""

    code = "weight-mismatch"


class WeightNotFinite(CheckpointError):
    """A quantised weight or its scale holds what is not a finite number."""

    code = "weight-not-finite"
    hint = "download the file again and compare its checksum with the publisher's"


class SchemeMismatch(CheckpointError):
    """quantization_config and the tensors do not agree on what is quantised."""

    code = "scheme-mismatch"
    hint = "nothing is guessed: a weight has a scale if, and only if, the configuration says that it is quantised"


class CheckpointChanged(CheckpointError):
    """The checkpoint was edited while it was being compiled."""

    code = "checkpoint-changed"


class PromiseBroken(CheckpointError):
    """A layer yields fewer proved sites of a fusion than its family promises. The work is done all the same, unfused there.

    `finished` is what was made: the Plan, or the sealed Artifact, whose numbers are right and whose ledger says the same.
    """

    code = "promise-broken"
    finished: Any = None
    hint = "GLMC_SHOW=3 prints every near miss; a new spelling goes into the fusion's file under `also`"


class ArtifactError(GlmcError):
    """The artefact cannot be opened."""

    code, exit = "artifact", 4


class DamagedArtifact(ArtifactError):
    """A file of the artefact is missing, extra, or differs from its digest."""

    code = "damaged-artifact"
    hint = "compile it again, or copy it again from where it was intact"


class IncompatibleArtifact(ArtifactError):
    """The artefact is intact but was made for another format, torch, or machine."""

    code = "incompatible-artifact"
    hint = "compile it again on this machine"


class StorageError(GlmcError):
    """Reading or writing failed: no space left, no permission, an I/O error."""

    code, exit = "storage", 5


class OutputBusy(StorageError):
    """Another process is writing the same output."""

    code = "output-busy"
    hint = "wait for it, or choose another -o"


class RankError(GlmcError):
    """A rank failed, fell silent or disagrees with the others."""

    code, exit = "rank", 6


class NumericError(GlmcError):
    """A value is not finite, or a proof exceeded its tolerance."""

    code, exit = "numeric", 7


class Slower(GlmcError):
    """A figure of the second report is slower than the first's, by more than noise explains."""

    code, exit = "slower", 8


class InternalError(GlmcError):
    """glmc broke one of its own laws: our bug."""

    code, exit = "internal", 70
    hint = "please report this with the command and the output of `glmc doctor`"
