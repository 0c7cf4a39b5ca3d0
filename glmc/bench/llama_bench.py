"""llama-bench as a contender: each request is two runs of it, one that reads the prompt and one that makes tokens behind it."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from glmc.bench.sample import Row, Sample
from glmc.errors import PeerFailed


class LlamaBench:
    """It loads its model anew each time and says what reading and making took; single tokens it does not tell."""

    compiles, device, vocabulary, phases = False, None, None, {}  # type: ignore[var-annotated]

    def __init__(self, program: str, model: str, threads: int) -> None:
        self._command = [program, "-m", model, "-t", str(threads), "-r", "1", "-o", "json"]
        self.facts: dict[str, Any] = {"threads": threads, "device": "llama.cpp's own choice", "model": None, "build": None}

    def request(self, prompts: list[list[int]], output_len: int) -> Sample:
        """Of one row. It draws its own tokens: as many as were asked for."""
        if len(prompts) != 1:
            raise PeerFailed("llama-bench reads one row at a time", field="--batch-size", expected="1", found=len(prompts))
        length = len(prompts[0])
        read = self._run("-p", str(length), "-n", "0")
        made = self._run("-p", "0", "-n", str(output_len - 1), "-d", str(length)) if output_len > 1 else 0.0
        return Sample((Row((read, read + made) if output_len > 1 else (read,), output_len, streamed=False),))

    def _run(self, *asked: str) -> float:
        """The seconds that its one test took."""
        done = subprocess.run([*self._command, *asked], capture_output=True, text=True, check=False)
        if done.returncode:
            raise PeerFailed("llama-bench failed", field="llama-bench", expected="exit status 0",
                             found=f"{done.returncode}: {done.stderr[-300:].strip()}")
        try:
            (test,) = json.loads(done.stdout)
            seconds = test["samples_ns"][0] / 1e9
            self.facts |= {"model": f"{test['model_type']}, {test['model_size']} bytes", "build": test["build_commit"]}
        except (ValueError, KeyError, IndexError, TypeError) as fault:
            raise PeerFailed("llama-bench gave no JSON of one test", field="llama-bench",
                             expected="model_type, model_size, build_commit, samples_ns", found=done.stdout[:200]) from fault
        return seconds
