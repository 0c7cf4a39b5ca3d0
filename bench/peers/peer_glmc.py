"""glmc itself, as the peers are run: an artefact, prompts read row by row, then greedy steps of the whole batch.

    PYTHON bench/peers/peer_glmc.py --model ARTEFACT --threads 2
"""

from __future__ import annotations

from pathlib import Path

import torch
from serve import Peer, options, serve

import glmc


class Glmc(Peer):
    """One loaded artefact; its cache is its own."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.model = glmc.load(folder, threads=threads)
        manifest = self.model.artifact.manifest
        self.vocabulary = self.model.dims["vocabulary"]
        self.name = f"glmc {manifest['target']} {manifest.get('quant') or manifest['dtype']}"
        self.version = f"glmc {glmc.__version__}, torch {torch.__version__}"
        self.length = 0

    def read(self, prompts: list[list[int]]) -> list[int]:
        self.model.take_cache()
        self.length = len(prompts[0])
        return [int(self.model.extend(row, ids, 0)[0, -1].numpy().argmax()) for row, ids in enumerate(prompts)]

    def write(self, tokens: list[int], steps: int) -> list[list[int]]:
        ids, made = torch.tensor(tokens).unsqueeze(1), []
        for step in range(steps):
            ids = torch.from_numpy(self.model.advance(ids, torch.full_like(ids, self.length + step)).numpy().argmax(-1))
            made.append(ids)
        return torch.cat(made, 1).tolist()


def main() -> None:
    given = options(__doc__).parse_args()
    serve(lambda: Glmc(given.model, given.threads))


if __name__ == "__main__":
    main()
