"""A part of an artefact's program beside the published modules: its steps one by one, each given what the published model
gave that step. What a vision tower needs; glmc/beside_text.py adds the cache and the choices of a text model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from glmc import divergence
from glmc.divergence import Apart, Row, apart
from glmc.native.keep import kept_of
from glmc.program import Program, Region
from glmc.runtime.session import Model
from glmc.runtime.steps import Steps
from glmc.streamed import Again, Call, Seen, Streamed, tensors, watch, wide_copy, widened

Values = dict[str, torch.Tensor]
_LAYER_WEIGHT = re.compile(r"^weight:((?:.*\.)?(?:layers|blocks)\.\d+)\.")


class Findings:
    """Of all parts: a row for each step, the first module that diverges, and notes. `dtype`: the artefact's."""

    def __init__(self, dtype: torch.dtype, notes: list[str]) -> None:
        self.dtype, self.wide = dtype, dtype != torch.float32
        self.rows: dict[str, Row] = {}
        self.first: str | None = None
        self.notes = notes

    def row(self, path: str) -> Row:
        return self.rows.setdefault(path, Row(path))

    def compare(self, path: str, form: str, ours: torch.Tensor, theirs: torch.Tensor, exact: torch.Tensor) -> Apart:
        found = apart(ours, theirs, exact, self.dtype)
        self.row(path).add(form, found)
        return found

    def blame(self, path: str, note: str) -> None:
        if self.first is None:
            self.first = path
            self.notes.append(note)


class Beside:
    """One part. `values`: of the piece at hand, the program's names -> what the published model has there, on our device."""

    def __init__(self, model: Model, program: Program, steps: Steps, published: Streamed, findings: Findings) -> None:
        self.model, self.program, self.steps, self.findings = model, program, steps, findings
        self.published, self.place = published, model.device.torch
        self.layers = {path: number for number, s in enumerate(program.steps)
                       if (path := next((m[1] for n in s.inputs if (m := _LAYER_WEIGHT.match(n))), None))}
        self.form, self.flow = "", ""
        self.values: Values = {}
        self._given: Callable[[], Values] = dict
        self._outer: dict[str, Seen] = {}

    @contextmanager
    def watching(self, form: str, given: Callable[[], Values]) -> Iterator[None]:
        """A piece: what the modules outside the layers do is noted. given: makes the program's inputs, when the first layer
        is there. After it the published model ran, and `end` is still to be called."""
        self.form, self.flow, self._given, self._outer = form, "", given, {}
        found = dict(self.published.model.named_modules())
        hooks = [watch(found[path], self._outer, path) for s in self.program.steps if not s.region.count("layer")
                 for path in self.program.places[s.region] if path in found]
        yield
        for hook in hooks:
            hook.remove()

    def layer(self, call: Call) -> None:
        """One layer or block; on the first divergence look inside. Before the first one comes what lies before the layers."""
        if not self.flow:
            self.values = self._given()
            self.outside(0, call.hidden)
        number = self.layers[call.path]
        self.values[self.flow] = call.hidden.contiguous().to(self.place)
        self.feed(call)
        given, ours = self._ours(number)
        plain, exact = call.both(self.findings.wide)
        self.flow = next(name for name, value in ours.items() if value.is_floating_point())
        at_odds = self.differs(call, number, given, ours, plain, exact)
        if at_odds and self.findings.first is None:
            self._look_inside(number, given, at_odds[0].seen, at_odds[1].seen, call.path, call.path)
        self.values[self.flow] = plain.output.contiguous().to(self.place)

    def feed(self, call: Call) -> None:
        """Before a layer runs: give it what the published one has besides its input."""

    def differs(self, call: Call, number: int, given: list[torch.Tensor], ours: Values, plain: Again, exact: Again,
                ) -> tuple[Again, Again] | None:
        """Compare a layer. The two published runs that ours is apart from; None where it is not."""
        found = self.findings.compare(call.path, self.form, ours[self.flow], plain.output, exact.output)
        return (plain, exact) if found.diverges else None

    def end(self) -> torch.Tensor:
        """Behind the layers; what the published part gave."""
        self.outside(len(self.program.steps) - 1)
        return self.values[self.program.logits]

    def region(self, number: int) -> Region:
        return self.program.regions[self.program.steps[number].region]

    def _ours(self, number: int) -> tuple[list[torch.Tensor], Values]:
        """What a step is given, and what it gives: its values by name."""
        call, inputs = self.steps.ready(number, self.form, self.values, every_row=True)
        given = [t.clone() if role == "cache" else t
                 for t, (_, role, _) in zip(inputs, self.region(number).inputs, strict=True)]
        with torch.no_grad():
            return given, dict(zip(self.program.steps[number].outputs, call(list(inputs)), strict=True))

    def inside(self, number: int, given: list[torch.Tensor]) -> Values:
        """What the text of a step's region makes of what it is given, by the names that places have."""
        region = self.region(number)
        kept = kept_of(self.model.artifact.json("program.json"), region.name) if self.model.kept else {}
        given = [kept[name].plain(t) if name in kept and isinstance(t, torch.Tensor) else t
                 for t, (name, _, _) in zip(given, region.inputs, strict=True)]
        with self.model.device.calling():
            return divergence.values(region, given, self.program.places[region.name], self.model.device.kernels,
                                     str(self.place))

    def outside(self, number: int, hidden: torch.Tensor | None = None) -> None:
        """A step outside the layers: each module that ends in one of its outputs, and blame inside.

        hidden: what the published model gives the first layer, where this step comes before it.
        """
        region, step = self.region(number), self.program.steps[number]
        places = self.program.places[step.region]
        given, ours = self._ours(number)
        exact = self._exact() if self.findings.wide else self._outer
        returned = dict(zip(re.findall(r"\w+", region.body[-1])[1:], step.outputs, strict=True))
        known: Values = {}
        bad = ""
        for module, place in places.items():
            names = [returned[o] for o in place.outputs if o in returned]
            inner = any(module.startswith(f"{m}.") and p.outputs == place.outputs for m, p in places.items())
            if module not in self._outer or len(names) != len(place.outputs) or inner:
                continue
            pairs = divergence.paired([ours[n] for n in names], self._outer[module].outputs, exact[module].outputs)
            for name, (mine, theirs, sure) in zip(names, pairs or (), strict=bool(pairs)):
                known[name] = theirs
                if self.findings.compare(module, self.form, mine, theirs, sure).diverges:
                    bad = bad or module
        if hidden is not None:
            self.flow = next(n for n, v in ours.items() if v.is_floating_point() and v.shape == hidden.shape)
            # No module puts the rows of images in the place of their tokens' embeddings: this is the name of what it gives.
            if self.flow not in known and self.findings.compare("inputs_embeds", self.form, ours[self.flow], hidden,
                                                                hidden).diverges:
                bad = bad or "inputs_embeds"
        self.values |= ours | {name: t.reshape(ours[name].shape).contiguous().to(self.place) for name, t in known.items()}
        if bad and self.findings.first is None:
            self._look_inside(number, given, self._outer, exact, "", bad)

    def _look_inside(self, number: int, given: list[torch.Tensor], seen: dict[str, Seen], sure: dict[str, Seen], around: str,
                     otherwise: str) -> None:
        """Blame a module inside a step. around: where its places are; otherwise: what is blamed where all of them agree."""
        places = self.program.places[self.program.steps[number].region]
        blame = divergence.first(places, self.inside(number, given), seen, sure, self.findings.dtype)
        path = otherwise if blame.module is None else ".".join(p for p in (around, blame.module) if p)
        inside = f"{blame.compared} modules inside compared, {blame.skipped} fused away or without a counterpart"
        if blame.module is None:
            inside = (f"the region's text agrees where it can be compared; its code in the form {self.form}, or a step after "
                      f"the last module, does not; {inside}")
        self.findings.blame(path, f"{path}, {self.form}: {inside}")

    def _exact(self) -> dict[str, Seen]:
        """The modules outside the layers in float32, each given what the one before it made in float32."""
        made: dict[tuple[int, int], torch.Tensor] = {}
        exact: dict[str, Seen] = {}

        def wide(tensor: torch.Tensor) -> torch.Tensor:
            found = made.get((tensor.data_ptr(), tensor.numel()))  # the same, or another view of it
            return widened(tensor) if found is None else found.as_strided(tensor.shape, tensor.stride(), found.storage_offset())

        for path, seen in self._outer.items():
            inputs = tuple(map(wide, seen.inputs))
            with torch.no_grad():
                outputs = tensors(wide_copy(self.published.model.get_submodule(path))(*inputs))
            made.update(zip(((t.data_ptr(), t.numel()) for t in seen.outputs), outputs, strict=True))
            exact[path] = Seen(inputs, tuple(outputs))
        return exact
