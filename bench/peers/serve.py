"""The loop that every peer runs: a request a line on stdin, an answer a line on stdout, each one JSON object.

When the model is loaded and has been warmed up: {"ready": true, "peer", "version", "load_seconds", "rss_mb", ...}, or
{"ready": false, "error"} and the end. Then

    {"prompt": 256, "steps": 64, "batch": 1}  ->  {"prefill_seconds", "decode_seconds", "rss_mb", "prepare_seconds"}

prefill_seconds: reading `batch` prompts of `prompt` random ids each into an empty cache, until the first greedy tokens
are known. decode_seconds: `steps` further greedy steps of the whole batch, one token a row. rss_mb: the most memory that
the process held at once during this request. prepare_seconds: what came before the clock, for a size not met before:
making caches, compiling for these shapes, one untimed run. Optional: "seed" of the prompts, "tokens": true to have the
greedy tokens of each row in the answer, "warm": false to leave the untimed run out. What fails answers {"error"}.

This file and its peers need nothing of glmc, so that each runs in an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Timed:
    """One run: seconds of the two phases, and each row's greedy tokens, the prompt's own answer first."""

    prefill: float
    decode: float
    tokens: list[list[int]]


class Peer:
    """What a peer offers. `prepare` comes first and is not timed; `read` and `write` are, or `run` with its own clock."""

    name = "peer"
    version = ""
    vocabulary = 0

    def prepare(self, batch: int, prompt: int, steps: int) -> None:
        """Make what these sizes need: caches, compiled code."""

    def read(self, prompts: list[list[int]]) -> list[int]:
        """Empty the cache, read the prompts (all of one length), return the first greedy token of each."""
        raise NotImplementedError

    def write(self, tokens: list[int], steps: int) -> list[list[int]]:
        """Feed one token a row, `steps` times, greedily; returns the tokens made, a list a row."""
        raise NotImplementedError

    def run(self, prompts: list[list[int]], steps: int) -> Timed:
        """Read the prompts, then decode."""
        began = time.perf_counter()
        first = self.read(prompts)
        read = time.perf_counter()
        more = self.write(first, steps) if steps else [[] for _ in first]
        done = time.perf_counter()
        return Timed(read - began, done - read if steps else 0.0, [[a, *rest] for a, rest in zip(first, more, strict=True)])


def options(doc: str | None, variants: tuple[str, ...] = ()) -> argparse.ArgumentParser:
    """The command line that every peer has."""
    made = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    made.add_argument("--model", type=Path, required=True)
    made.add_argument("--threads", type=int, default=2)
    if variants:
        made.add_argument("--variant", choices=variants, default=variants[0])
    return made


def peak_mb(reset: bool = False) -> float:
    """The most memory this process held at once since it was last reset, in MB (1e6 bytes)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
        return 0.0
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) * 1024 / 1e6, 1)
    raise RuntimeError("the system tells no peak memory")


def prompts_of(vocabulary: int, batch: int, length: int, seed: int) -> list[list[int]]:
    """Random ids, the same for every peer; 0 is the padding of some."""
    drawn = random.Random(seed)
    return [[drawn.randrange(1, vocabulary) for _ in range(length)] for _ in range(batch)]


def answer(peer: Peer, request: dict[str, Any], seen: set[tuple[int, int, int]]) -> dict[str, Any]:
    """Run one request."""
    batch, length, steps = request.get("batch", 1), request["prompt"], request.get("steps", 0)
    prompts = prompts_of(peer.vocabulary, batch, length, request.get("seed", 1))
    began = time.perf_counter()
    peer.prepare(batch, length, steps)
    if (batch, length, steps) not in seen and request.get("warm", True):
        peer.run(prompts, min(steps, 3))
    seen.add((batch, length, steps))
    prepared = time.perf_counter() - began
    peak_mb(reset=True)
    ran = peer.run(prompts, steps)
    made: dict[str, Any] = {"prefill_seconds": ran.prefill, "decode_seconds": ran.decode, "rss_mb": peak_mb(),
                            "prepare_seconds": round(prepared, 3)}
    if request.get("tokens"):
        made["tokens"] = [[int(token) for token in row] for row in ran.tokens]
    return made


def serve(make: Any) -> None:
    """Load with `make()`, which returns a Peer, then answer until stdin ends."""
    pipe = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the libraries print goes to stderr
    sys.stdout = sys.stderr

    def say(value: dict[str, Any]) -> None:
        pipe.write(json.dumps(value) + "\n")

    began = time.perf_counter()
    try:
        peer = make()
        loaded = time.perf_counter() - began
        seen: set[tuple[int, int, int]] = set()
        answer(peer, {"prompt": 32, "steps": 4}, seen)
    except Exception as error:
        traceback.print_exc()
        say({"ready": False, "error": f"{type(error).__name__}: {error}"})
        raise SystemExit(1) from error
    say({"ready": True, "peer": peer.name, "version": peer.version, "load_seconds": round(loaded, 3),
         "rss_mb": peak_mb()})
    for line in sys.stdin:
        if not line.strip():
            continue
        try:
            say(answer(peer, json.loads(line), seen))
        except Exception as error:
            traceback.print_exc()
            say({"error": f"{type(error).__name__}: {error}"})
