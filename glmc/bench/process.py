"""The driver's end of a contender's process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

from glmc import errors
from glmc.bench.peer import Contender
from glmc.bench.sample import Sample
from glmc.bench.work import Work
from glmc.errors import GlmcError, PeerFailed

_PATIENCE = 10


class Process:
    """A contender that is open. `ready`: what it said of itself; `phases`: seconds of each phase of its start, in order.

    Its own session: an interrupt of the driver reaches the driver alone, which then ends it. Raises PeerFailed, and what the
    contender itself raised.
    """

    def __init__(self, contender: Contender, threads: int) -> None:
        self.contender = contender
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        self._errors = tempfile.TemporaryFile("w+")
        began = time.perf_counter()
        told = {"kind": contender.kind, **contender.told}
        self._child = subprocess.Popen([sys.executable, "-m", "glmc.bench.worker", json.dumps(told)], stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, stderr=self._errors, env=environment, text=True,
                                       start_new_session=True)
        try:
            self.ready = self._said()["ready"]
        except BaseException:
            self.close()
            raise
        inside = dict(self.ready["phases"])
        # Both clocks are the system's one monotonic clock, so that the child's first line can be set beside the start.
        self.phases = {"process": inside.pop("started") - began, **inside}
        self.memory = self.ready["memory"]

    @property
    def pid(self) -> int:
        return self._child.pid

    def ask(self, work: Work) -> Sample:
        """Have a request answered, and note the memory that it took."""
        told = self._asked({"prompts": work.prompts(self.ready["vocabulary"] or 1 << 30), "output_len": work.output_len})
        self.memory, self.ready["facts"] = told["memory"], told["facts"]
        return Sample.from_json(told["rows"])

    def probe(self) -> dict[str, Any]:
        return self._asked({"probe": True})["probe"]

    def profile(self, work: Work) -> dict[str, Any]:
        return self._asked({"profile": work.to_json()})["profile"]

    def _asked(self, what: dict[str, Any]) -> dict[str, Any]:
        try:
            self._child.stdin.write(json.dumps(what) + "\n")  # type: ignore[union-attr]
            self._child.stdin.flush()  # type: ignore[union-attr]
        except BrokenPipeError as fault:
            raise self._failed() from fault
        return self._said()

    def _said(self) -> dict[str, Any]:
        line = self._child.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise self._failed()
        said = json.loads(line)
        if "error" in said:
            raise _fault(said["error"], self.contender.name)
        return said

    def _failed(self) -> PeerFailed:
        status = self._child.wait()
        self._errors.seek(0)
        last = self._errors.read()[-300:].strip().splitlines()
        return PeerFailed("a contender's process ended", field=self.contender.name, expected="an answer",
                          found=f"exit status {status}" + (f": {last[-1]}" if last else ""))

    def close(self) -> None:
        """End the process: first by closing its stdin, then by force."""
        if self._child.stdin and not self._child.stdin.closed:
            try:
                self._child.stdin.close()
            except BrokenPipeError:
                self._child.kill()
        try:
            self._child.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        if self._child.stdout:
            self._child.stdout.close()
        self._errors.close()


def _fault(told: dict[str, Any], name: str) -> GlmcError:
    """The error that a contender told, as the class that it was."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, GlmcError)]
    kind = next((one for one in kinds if one.code == told["code"]), PeerFailed)
    made = kind(told["what"], **{key: told[key] for key in ("file", "field", "expected", "found", "hint")})
    made.contender = name  # type: ignore[attr-defined]
    return made
