"""What a verb has made, and the promise that was broken on the way: both are told, and the exit code says which."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from glmc.errors import PromiseBroken


class Outcome:
    """`finished`: the plan or the artefact. `error`: the broken promise, or None."""

    finished: Any = None
    error: PromiseBroken | None = None

    def told(self) -> dict[str, Any]:
        """The error for `--json`, beside what was made; {} without one."""
        return {"error": self.error.to_json()} if self.error else {}

    def leave(self, told: bool = False) -> None:
        """End the verb. Raises the broken promise, or SystemExit with its code where it was `told` already."""
        if self.error:
            raise SystemExit(self.error.exit) if told else self.error


@contextmanager
def outcome() -> Iterator[Outcome]:
    """Keeps what was finished although a promise was broken; every other fault passes."""
    made = Outcome()
    try:
        yield made
    except PromiseBroken as error:
        if error.finished is None:
            raise
        made.finished, made.error = error.finished, error
