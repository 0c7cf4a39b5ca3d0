"""What GLMC_SHOW and GLMC_KEEP ask to see of a compilation: ledger, pass times, near misses, the text after each pass."""

from __future__ import annotations

import sys
from pathlib import Path

from torch import fx

from glmc import knobs
from glmc.errors import StorageError, printable


class Trail:
    """Numbers the stages of one compilation. Each line goes to stderr; texts also go to GLMC_KEEP, one file a stage."""

    def __init__(self) -> None:
        self.level = knobs.get("GLMC_SHOW")
        self._keep = knobs.get("GLMC_KEEP")
        self._stage = 0

    def say(self, level: int, text: str) -> None:
        """Print `text` when GLMC_SHOW is at least `level`."""
        if self.level >= level:
            print("\n".join(printable(line) for line in text.splitlines()), file=sys.stderr)

    def graph(self, stage: str, graph: fx.Graph) -> None:
        """The graph's text after a stage: level 4, and a file in GLMC_KEEP. Raises StorageError."""
        self._stage += 1
        if self.level < 4 and not self._keep:
            return
        text = "".join(f"{node.format_node()}\n" for node in graph.nodes if node.op == "call_function")
        if self.level >= 4:
            print(f"--- {stage}\n{text}", file=sys.stderr)
        if self._keep:
            try:
                folder = Path(self._keep)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{self._stage}-{stage}.txt").write_text(text)
            except OSError as error:
                raise StorageError("the text cannot be kept", file=self._keep, field="GLMC_KEEP", found=error) from error
