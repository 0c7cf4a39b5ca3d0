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
from glmc.runtime.engines import fx, native
from glmc.runtime.memory import Cache, slots_of
from glmc.runtime.prompt import Placed
from glmc.runtime.ranks import Ranks
from glmc.runtime.steps import Steps
from glmc.runtime.transfer import to_device

ANY = "any"
"""The one form of the code of a part beside the text: it takes images of any number and size."""

PIECE = 128
"""Tokens of a prompt that engine `iree` runs at once: what attention makes of them stays near the core, and slots behind a
piece are not looked at."""


class ByRegion:
    """A program's regions bound to weights and to a cache. Logits are on the host, or on a device that is run ahead."""

    def __init__(self, artifact: Artifact, program: Program, weights: dict[str, torch.Tensor], calls: dict[str, dict[str, Any]],
                 device: Device, kept: dict[str, Keep], ranks: Ranks) -> None:
        self.device = device
        self.steps = Steps(program, weights, calls, kept, ranks)
        self.axes = any(name == "where" for region in program.regions.values() for name, _, _ in region.inputs)
        self.features = _features(program, device.torch)
        bounds = artifact.manifest["bounds"]
        self.least, most = slots_of(artifact.manifest)
        self.packed = artifact.manifest["engine"] == "iree"  # it takes no views with gaps: of several rows all slots
        self.piece = PIECE if self.packed else None
        self.cache = Cache(program, bounds["max_batch"], most, device.torch)
        # What moves between ranks is no work of the device alone, which a recording would hold.
        record = device.record if ranks.size == 1 else None
        self.decoder = record and Decoder(self._decode, record, bounds["max_len"], device.torch)

    def extend(self, row: int, ids: Sequence[int], start: int, every_row: bool, placed: Placed | None = None,
               ) -> torch.Tensor:
        """Run new tokens `ids` of one cache row from position `start`; logits [1, len(ids) or 1, vocabulary]."""
        logits, piece = [], self.piece or len(ids)
        with torch.no_grad():
            for at in range(0, len(ids), piece):
                tokens = torch.tensor([list(ids[at:at + piece])], dtype=torch.int64)
                positions = torch.arange(start + at, start + at + tokens.shape[1], dtype=torch.int64).unsqueeze(0)
                named = self.named(tokens, positions, row, placed=placed and placed.part(at, at + tokens.shape[1]))
                logits.append(self._told(self.steps.run("decode" if tokens.shape[1] == 1 else "prefill", named, every_row)))
        return torch.cat(logits, 1) if every_row else logits[-1]

    def advance(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """One token for each of the first rows: tokens int64 [B, 1], positions int64 [B, 1, 2 or 4], as `named` takes them ->
        logits [B, 1, vocabulary].

        positions: on the host. The logits are valid until the next call.
        """
        with torch.no_grad():
            if self.decoder is not None:
                return self._told(self.decoder(tokens, positions))
            return self._told(self.steps.run(_decoding(tokens), self.named(tokens, positions, 0), False))

    def _decode(self, tokens: torch.Tensor, positions: torch.Tensor, slots: int) -> torch.Tensor:
        return self.steps.run(_decoding(tokens), self.named(tokens, positions, 0, slots), False)

    def _told(self, logits: torch.Tensor) -> torch.Tensor:
        return logits if self.device.ahead else logits.cpu()

    def named(self, tokens: torch.Tensor, positions: torch.Tensor, row: int, slots: int | None = None,
              placed: Placed | None = None) -> dict[str, torch.Tensor]:
        """What a program reads, by name: the inputs, and views of the cache from row `row` on, up to the last that is filled
        or the first `slots`.

        positions: int64 [B, S], slot and position of each new token; of one token a row also [B, 2], its slot and its position
        on all three axes, or [B, 4], its slot and its position on each. placed: where some of the tokens lie in images.
        """
        slots, place = max(self.least, int(positions.max()) + 1 if slots is None else slots), self.device.torch
        if self.packed and len(tokens) > 1:
            slots = self.cache.slots
        named = {"input_ids": tokens, "slots": torch.arange(slots, device=place)}
        where, axes = positions[:, :tokens.shape[1]], positions[:, tokens.shape[1]:]
        if not self.axes:
            named["positions"] = positions
        else:
            at = axes.T.unsqueeze(-1) if axes.shape[1] else where
            named |= {"where": where, "positions": at.expand(3, -1, -1) if placed is None else placed.positions.unsqueeze(1)}
        if self.features is not None:
            named |= {"features": self.features, "media": torch.full_like(where, -1)}
            if placed is not None and placed.media is not None and placed.features is not None:
                named |= {"features": placed.features, "media": placed.media.unsqueeze(0)}
        # Compiled code takes the strides of contiguous tensors for granted.
        moved = {f"input:{name}": to_device(tensor.contiguous(), place) for name, tensor in named.items()}
        return moved | self.cache.views(row, len(tokens), slots)


def stage_of(artifact: Artifact, program: Program, weights: dict[str, torch.Tensor], kept: dict[str, Keep], device: Device,
             ) -> Steps:
    """A part beside the text as regions that run one by one, in the form `ANY`: natively where the library runs the part."""
    engine = native if artifact.manifest["engine"] == "native" and program.engine is None else fx
    calls = {name: engine.open(artifact, region, ANY, device) for name, region in program.regions.items()}
    return Steps(program, weights, {ANY: calls}, kept)


def open_code(artifact: Artifact, program: Program, max_batch: int, device: Device) -> dict[str, dict[str, Any]]:
    """Every region's callable by form, from the artefact's engine. Raises DamagedArtifact."""
    engine = importlib.import_module(f"glmc.runtime.engines.{artifact.manifest['engine']}")
    forms = [f for f in FORMS if f != "decode_rows" or max_batch > 1]
    return {form: {name: engine.open(artifact, region, form, device) for name, region in program.regions.items()}
            for form in forms}


def _decoding(tokens: torch.Tensor) -> str:
    """The form that decodes one token a row."""
    return "decode" if len(tokens) == 1 else "decode_rows"


def _features(program: Program, device: torch.device) -> torch.Tensor | None:
    """What stands for a tower's rows where there is no image, [2, hidden] on the device; None where nothing reads them."""
    spec = next((spec for region in program.regions.values() for name, _, spec in region.inputs if name == "features"), None)
    return None if spec is None else torch.zeros(2, int(spec.shape[1]), dtype=getattr(torch, spec.dtype), device=device)
