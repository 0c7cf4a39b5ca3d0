"""An error on its way between processes: what happened where, as text, and the same class of error at the other end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from glmc import errors
from glmc.errors import GlmcError, RankError, printable

CLASSES = {kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, GlmcError)}
"""Code -> class: all that can be raised at the other end."""
_TEXT = ("what", "code", "stage", "file", "field", "expected", "found", "hint")
LONGEST = 2000


@dataclass(frozen=True)
class RankFault:
    """ranks: whose fault it is, as far as it is known. exit: the code with which the process ends."""

    what: str
    code: str = RankError.code
    exit: int = RankError.exit
    ranks: tuple[int, ...] = ()
    stage: str = ""
    file: str | None = None
    field: str | None = None
    expected: str | None = None
    found: str | None = None
    hint: str | None = None

    @staticmethod
    def of(error: BaseException, rank: int, stage: str) -> RankFault:
        """What `error`, raised on `rank` in `stage`, is to the others; one that came from a rank stays what it was there."""
        if isinstance(known := getattr(error, "fault", None), RankFault):
            return known
        if not isinstance(error, GlmcError):
            return RankFault(f"{type(error).__name__}: {error}"[:LONGEST], ranks=(rank,), stage=stage)
        told = {k: None if (v := getattr(error, k)) is None else printable(v) for k in _TEXT[3:]}
        code = error.code if error.code in CLASSES else RankError.code
        return RankFault(error.what[:LONGEST], code, CLASSES[code].exit, (rank,), stage, **told)

    def error(self) -> GlmcError:
        """An error of the same class that names ranks and stage; its `fault` is this."""
        ranks = f"rank{'s' * (len(self.ranks) > 1)} {', '.join(map(str, self.ranks))}"
        where = ", ".join(part for part in (ranks * bool(self.ranks), self.stage and f"stage {self.stage!r}") if part)
        made = CLASSES[self.code](f"{where}: {self.what}" if where else self.what, file=self.file, field=self.field,
                                  expected=self.expected, found=self.found, hint=self.hint)
        made.fault = self  # type: ignore[attr-defined]
        return made

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ranks": list(self.ranks)}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> RankFault:
        """What `to_json` gave. Raises RankError for anything else; an unknown code becomes RankError's."""
        text: dict[str, Any] = {k: value.get(k) for k in _TEXT}
        ranks = value.get("ranks", [])
        if any(v is not None and not isinstance(v, str) for v in text.values()) or not isinstance(text["what"], str) or not (
                isinstance(ranks, list) and all(type(rank) is int for rank in ranks)):
            raise RankError("a rank told an error that is none", found=sorted(value))
        code = text["code"] if text["code"] in CLASSES else RankError.code
        text |= {"code": code, "stage": text["stage"] or "", "what": text["what"][:LONGEST]}
        return RankFault(exit=CLASSES[code].exit, ranks=tuple(ranks), **text)
