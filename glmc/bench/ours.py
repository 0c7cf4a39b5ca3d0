"""An artefact as a contender: glmc's own generation, from ids to text, as its users have it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glmc.bench.sample import Row, Sample, watch
from glmc.bench.work import Work


class Ours:
    """phases: seconds of each phase until a request can be answered. facts: what the report says of it."""

    compiles = False

    def __init__(self, path: str, threads: int | None, device: str | None) -> None:
        began = time.perf_counter()
        from glmc.bench.bound import traffic_of
        from glmc.runtime.session import load

        imported = time.perf_counter()
        model: Any = load(Path(path), threads, device)
        model.check_writes()
        loaded = time.perf_counter()
        self.model, inside = model, model.timings
        self.phases = {"import": imported - began, "weights": inside["weights_and_code"], "place": inside["place"],
                       "open": loaded - imported - inside["weights_and_code"] - inside["place"]}
        self.vocabulary = model.dims["vocabulary"]
        self.device = str(model.device.torch)
        self.facts = {"traffic": traffic_of(model).to_json(), "threads": model.threads, "device": model.device.name,
                      "engine": model.artifact.manifest["engine"]}
        # Every request makes as many tokens as were asked for, as with ignore_eos elsewhere.
        model.text.stop_ids = frozenset()

    def request(self, prompts: list[list[int]], output_len: int) -> Sample:
        """Greedy, all rows at once."""
        from glmc.runtime.generate import generate
        from glmc.runtime.prompt import Prompt
        from glmc.runtime.sample import Sampling

        made = [Prompt(ids) for ids in prompts]

        def begin() -> Iterator[int]:
            return (row for row, _ in generate(self.model, made, output_len, Sampling()))

        seen = watch(begin, len(prompts))
        # What comes behind the last token is what the text stream still held back.
        return Sample(tuple(Row(row.events[:output_len], output_len) for row in seen.rows))

    def profile(self, work: Work) -> dict[str, Any]:
        """A decode step and a prompt by region, op and kernel. The model is measured no more after it."""
        from glmc.bench.profile import profile

        return profile(self.model, work)
