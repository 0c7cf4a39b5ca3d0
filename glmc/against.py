"""`glmc verify --against`: an artefact beside the published model, step by step, on one random prompt.

Every step is given what the published model gave that step, cache included, so that errors do not add up; then the whole
is run by itself and its logits are compared. The prompt is run as one piece and then a few tokens one by one, so that each
form of the code for one row is tried. Where there is a vision tower the prompt has images, and the tower's blocks are steps
too. The artefact is held in memory as for generating; of the published model what lies outside the layers and blocks, one of
these and, for bfloat16, a float32 copy of that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glmc import families
from glmc.artifact import Artifact
from glmc.beside import Beside, Findings, Values
from glmc.beside_text import BesideText
from glmc.checkpoint.components import open_checkpoint
from glmc.checkpoint.folder import Checkpoint
from glmc.divergence import Row
from glmc.errors import IncompatibleArtifact
from glmc.runtime.by_region import ANY
from glmc.runtime.prompt import Placed
from glmc.runtime.session import Model
from glmc.streamed import Call, Seen, Streamed, watch
from glmc.trial import trial

_NOT_SIZES = ("eps", "max_positions", "tied")
TOWER = "model.visual"
PICTURING = ("glyph", "dit", "vae_decode", "vae_encode")
"""Parts of other published classes than the one that is compared."""


@dataclass
class Answer:
    """The comparison. `first`: path of the first module that diverges, None where all agree."""

    rows: list[Row]
    first: str | None
    notes: list[str]
    tokens: list[int]


def against(artifact: Artifact, source: Path, seed: int = 0, device: str | None = None) -> Answer:
    """Compare: the artefact on its own device, or on one that checks it; the published model on the CPU.

    Raises IncompatibleArtifact (another architecture, no places), UsageError (device), CheckpointError and what loading raises.
    """
    checkpoint = open_checkpoint(source)
    _same_architecture(artifact, checkpoint)
    model = Model(artifact, device)
    if not all(program.places for part, program in model.programs.items() if part not in PICTURING):
        raise IncompatibleArtifact("the artefact does not say where the published modules are", field="places",
                                   file="program.json", hint="compile it again")
    answer = _Comparison(model, checkpoint, seed).run()
    left = [part for part in PICTURING if part in model.programs]
    answer.notes += [f"not compared: {', '.join(left)}, which are of other published classes"] if left else []
    return answer


def _same_architecture(artifact: Artifact, checkpoint: Checkpoint) -> None:
    family = families.load(checkpoint.config, checkpoint.folder)
    ours, theirs = map(_sizes, (artifact.manifest["dims"],
                                json.loads(json.dumps(dataclasses.asdict(family.read(checkpoint.config))))))
    for name in sorted(ours.keys() & theirs.keys(), key=lambda n: (n != "model_type", n)):
        if ours[name] != theirs[name]:
            raise IncompatibleArtifact("the checkpoint is of another architecture than the artefact", field=name,
                                       file=checkpoint.folder, expected=ours[name], found=theirs[name],
                                       hint="compare it with the checkpoint that it was compiled from")


def _sizes(dims: dict[str, Any]) -> dict[str, Any]:
    return {name: _sizes(value) if isinstance(value, dict) else value for name, value in dims.items()
            if name not in _NOT_SIZES}


class _Comparison:
    """`features`: what the published tower made of the images of the prompt."""

    def __init__(self, model: Model, checkpoint: Checkpoint, seed: int) -> None:
        self.model, self.checkpoint = model, checkpoint
        self.dtype = getattr(torch, model.artifact.manifest["dtype"])
        self.asked = trial(model, self.dtype, seed)
        self.tokens, self.seen = self.asked.tokens, self.asked.seen
        self.vision = model.vision if self.seen else None
        self.findings = Findings(self.dtype, self.asked.notes)
        self.regions = model.by_region()
        self.features = torch.empty(0)

    def run(self) -> Answer:
        model, findings, published = self.model, self.findings, Streamed(self.checkpoint, self.dtype)
        text = BesideText(model, model.program, self.regions.steps, published, findings)
        vision, seen = self.vision, self.seen
        tower = Beside(model, vision.program, vision.by_region(), published, findings) if vision else None
        theirs = self._steps(published, text, tower)
        published.close()
        exact, sure = self._exact() if findings.wide else (theirs, self.features)
        if vision and seen:
            found = vision(seen.pixels, seen.grid)
            if findings.compare(TOWER, ANY, found, self.features, sure).diverges:
                findings.blame(TOWER, "every step of the tower agrees by itself; the steps one after another do not")
        for (a, b), ours, logits, wide in zip(self.asked.pieces, self._alone(), theirs, exact, strict=True):
            findings.compare("logits", _form(a, b), ours, logits, wide)
        if findings.wide and text.routed:
            # Where experts are nearly equal, rounding chooses, and a token that gets other experts is far off, published
            # or not, and so are those after it. That the steps fit together is seen already: they read by their names.
            findings.row("logits").unjudged()
            findings.notes.append("logits: not judged, since rounding to bfloat16 decides between nearly equal experts")
        if findings.row("logits").diverges:
            findings.blame("logits", "every step agrees by itself; the steps one after another do not")
        return Answer(list(findings.rows.values()), findings.first, findings.notes, self.tokens[0].tolist())

    def _steps(self, published: Streamed, text: BesideText, tower: Beside | None) -> list[torch.Tensor]:
        """Every step of every piece; returns the published logits of each."""
        cache, logits = published.cache(), []

        def layer(call: Call) -> None:
            (tower if tower and call.path in tower.layers else text).layer(call)

        for a, b in self.asked.pieces:
            text.start = a
            with contextlib.ExitStack() as watched:
                watched.enter_context(text.watching(_form(a, b), functools.partial(self._given, a, b, tower)))
                if tower and self.vision and self.seen and a == 0:
                    images = functools.partial(self.vision.named, self.seen.pixels, self.seen.grid)
                    watched.enter_context(tower.watching(ANY, images))
                logits.append(published.run(self.tokens[:, a:b], cache, self.asked.media(a), layer))
            text.end()
        return logits

    def _given(self, a: int, b: int, tower: Beside | None) -> Values:
        """What the text model reads in a piece; a tower has ended before."""
        at, placed = torch.arange(a, b).unsqueeze(0), None
        if self.seen and tower and a == 0:
            self.features = tower.end()
            placed = Placed(self.seen.positions, self.seen.media, self.features)
        elif self.seen:
            at = torch.cat([at, at + self.asked.prompt.delta], 1)
        return self.regions.named(self.tokens[:, a:b], at, 0, placed=placed)

    def _exact(self) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The published model in float32: the logits of each piece, and what its tower made."""
        wide, seen = Streamed(self.checkpoint, torch.float32), dict[str, Seen]()
        cache = wide.cache()
        if self.seen:
            watch(wide.model.get_submodule(TOWER), seen, TOWER)
        logits = [wide.run(self.tokens[:, a:b], cache, self.asked.media(a)) for a, b in self.asked.pieces]
        return logits, seen[TOWER].outputs[-1] if seen else self.features

    def _alone(self) -> Iterator[torch.Tensor]:
        """The artefact by itself: the logits of each piece."""
        self.model.take_cache()
        prompt = self.asked.prompt
        yield self.model.prefill(0, prompt, every_row=True)
        for a, b in self.asked.pieces[1:]:
            if self.seen:
                yield self.model.advance(self.tokens[:, a:b], torch.tensor([[a, a + prompt.delta]]))
            else:
                yield self.model.extend(0, self.tokens[0, a:b].tolist(), a, every_row=True)


def _form(a: int, b: int) -> str:
    return "decode" if b - a == 1 else "prefill"
