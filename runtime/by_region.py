"""Running a program region by region: each an engine's callable, the cache a tensor that their code writes."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch

from glmc.artifact import Artifact
from glmc.native.keep import Keep
from glmc.program import FORMS, Program
from glmc.runtime.capture import Decoder
from glmc.runtime.device import Device
from glmc.runtime.memory import Cache
from glmc.runtime.steps import Steps
from glmc.runtime.transfer import to_device


class ByRegion:
    """A program's regions bound to weights and to a cache. Logits are on the host, or on a device that is run ahead."""

    def __init__(self, artifact: Artifact, program: Program, weights: dict[str, torch.Tensor], calls: dict[str, dict[str, Any]],
                 device: Device, kept: dict[str, Keep]) -> None:
        bounds = artifact.manifest["bounds"]
        self.device = device
        self.steps = Steps(program, weights, calls, kept)
        self.least = max(2, artifact.manifest["dims"].get("index_topk", 0))  # an indexer chooses a fixed number of slots
        self.cache = Cache(program, bounds["max_batch"], max(bounds["max_len"], self.least), device.torch)
        self.decoder = device.record and Decoder(self._decode, device.record, bounds["max_len"], device.torch)

    def extend(self, row: int, ids: Sequence[int], start: int, every_row: bool) -> torch.Tensor:
        """Run new tokens `ids` of one cache row from position `start`; logits [1, len(ids) or 1, vocabulary]."""
        tokens = torch.tensor([list(ids)], dtype=torch.int64)
        positions = torch.arange(start, start + len(ids), dtype=torch.int64).unsqueeze(0)
        return self._run("decode" if len(ids) == 1 else "prefill", tokens, positions, row, every_row)

    def advance(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """One token for each of the first rows: tokens, positions int64 [B, 1] -> logits [B, 1, vocabulary].

        positions: on the host. The logits are valid until the next call.
        """
        if self.decoder is not None:
            with torch.no_grad():
                return self._told(self.decoder(tokens, positions))
        return self._run(_decoding(tokens), tokens, positions, 0, False)

    def _decode(self, tokens: torch.Tensor, positions: torch.Tensor, slots: int) -> torch.Tensor:
        return self.steps.run(_decoding(tokens), self.named(tokens, positions, 0, slots), False)

    def _run(self, form: str, tokens: torch.Tensor, positions: torch.Tensor, row: int, every_row: bool) -> torch.Tensor:
        with torch.no_grad():
            return self._told(self.steps.run(form, self.named(tokens, positions, row), every_row))

    def _told(self, logits: torch.Tensor) -> torch.Tensor:
        return logits if self.device.ahead else logits.cpu()

    def named(self, tokens: torch.Tensor, positions: torch.Tensor, row: int, slots: int | None = None,
              ) -> dict[str, torch.Tensor]:
        """What a program reads, by name: the inputs, and views of the cache from row `row` on, up to the last that is filled
        or the first `slots`."""
        slots, place = max(self.least, int(positions.max()) + 1 if slots is None else slots), self.device.torch
        # Compiled code takes the strides of contiguous tensors for granted.
        named = {"input:input_ids": to_device(tokens.contiguous(), place),
                 "input:positions": to_device(positions.contiguous(), place),
                 "input:slots": torch.arange(slots, device=place)}
        return named | self.cache.views(row, len(tokens), slots)


def open_code(artifact: Artifact, program: Program, max_batch: int, device: Device) -> dict[str, dict[str, Any]]:
    """Every region's callable by form, from the artefact's engine. Raises DamagedArtifact."""
    engine = importlib.import_module(f"glmc.runtime.engines.{artifact.manifest['engine']}")
    forms = [f for f in FORMS if f != "decode_rows" or max_batch > 1]
    return {form: {name: engine.open(artifact, region, form, device) for name, region in program.regions.items()}
            for form in forms}


def _decoding(tokens: torch.Tensor) -> str:
    """The form that decodes one token a row."""
    return "decode" if len(tokens) == 1 else "decode_rows"
