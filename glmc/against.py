"""`glmc verify --against`: an artefact beside the published model, step by step, on one random prompt.

Every step is given what the published model gave that step, cache included, so that errors do not add up; then the whole
is run by itself and its logits are compared. The prompt is run as one piece and then a few tokens one by one, so that each
form of the code for one row is tried. The artefact is held in memory as for generating; of the published model what lies
outside the layers, one layer and, for bfloat16, a float32 copy of that.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from glmc import divergence, families
from glmc.artifact import Artifact
from glmc.checkpoint.folder import Checkpoint
from glmc.divergence import Apart, Row, apart
from glmc.errors import IncompatibleArtifact
from glmc.native.keep import kept_of
from glmc.program import Region
from glmc.runtime.session import Model
from glmc.streamed import CACHES, Call, Seen, Streamed, cached, tensors, watch, wide_copy, widened

PROMPT, MORE = 13, 3
_NOT_SIZES = ("eps", "max_positions", "tied")
_LAYER_WEIGHT = re.compile(r"^weight:((?:.*\.)?layers\.\d+)\.")


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
    checkpoint = Checkpoint.open(source)
    _same_architecture(artifact, checkpoint)
    return _Comparison(Model(artifact, device), checkpoint, seed).run()


def _same_architecture(artifact: Artifact, checkpoint: Checkpoint) -> None:
    ours = artifact.manifest["dims"]
    family = families.load(checkpoint.config, checkpoint.folder)
    theirs = json.loads(json.dumps(dataclasses.asdict(family.read(checkpoint.config))))
    for name in sorted((ours.keys() & theirs.keys()) - set(_NOT_SIZES), key=lambda n: (n != "model_type", n)):
        if ours[name] != theirs[name]:
            raise IncompatibleArtifact("the checkpoint is of another architecture than the artefact", field=name,
                                       file=checkpoint.folder, expected=ours[name], found=theirs[name],
                                       hint="compare it with the checkpoint that it was compiled from")


class _Comparison:
    def __init__(self, model: Model, checkpoint: Checkpoint, seed: int) -> None:
        self.model, self.checkpoint = model, checkpoint
        self.program, self.regions, self.place = model.program, model.by_region(), model.device.torch
        if not self.program.places:
            raise IncompatibleArtifact("the artefact does not say where the published modules are", field="places",
                                       file="program.json", hint="compile it again")
        self.dtype = getattr(torch, model.artifact.manifest["dtype"])
        self.wide = self.dtype != torch.float32
        few = model.dims.get("index_topk", 0)  # an indexer's choice begins behind so many slots
        first = max(1, min(PROMPT + few, model.max_len - MORE))
        count = min(model.max_len, first + MORE)
        draw = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(0, model.dims["vocabulary"], (1, count), generator=draw)
        self.pieces = [(0, first), *((at, at + 1) for at in range(first, count))]
        self.rows: dict[str, Row] = {}
        self.blamed: str | None = None
        self.routed = False
        self.notes: list[str] = [] if count > few else [
            f"the indexer chooses nothing: it looks at {few} slots, and the artefact's rows hold {model.max_len}"]
        self.steps = {path: number for number, s in enumerate(self.program.steps)
                      if (path := next((m[1] for n in s.inputs if (m := _LAYER_WEIGHT.match(n))), None))}
        self.values: dict[str, torch.Tensor] = {}  # of one piece: the program's names -> the published values, on our device
        self.form, self.start, self.flow = "", 0, ""

    def run(self) -> Answer:
        published = Streamed(self.checkpoint, self.dtype)
        theirs = self._steps(published)
        published.close()
        exact = theirs
        if self.wide:
            wide = Streamed(self.checkpoint, torch.float32)
            cache = wide.cache()
            exact = [wide.run(self.tokens[:, a:b], cache) for a, b in self.pieces]
        self.model.take_cache()
        ids = self.tokens[0].tolist()
        for (a, b), logits, sure in zip(self.pieces, theirs, exact, strict=True):
            self._compare("logits", "decode" if b - a == 1 else "prefill",
                          self.model.extend(0, ids[a:b], a, every_row=True), logits, sure)
        if self.wide and self.routed:
            # Where experts are nearly equal, rounding chooses, and a token that gets other experts is far off, published
            # or not, and so are those after it. That the steps fit together is seen already: they read by their names.
            self.rows["logits"].unjudged()
            self.notes.append("logits: not judged, since rounding to bfloat16 decides between nearly equal experts")
        if self.blamed is None and self.rows["logits"].diverges:
            self.blamed = "logits"
            self.notes.append("every step agrees by itself; the steps one after another do not")
        return Answer(list(self.rows.values()), self.blamed, self.notes, ids)

    def _compare(self, path: str, form: str, ours: torch.Tensor, theirs: torch.Tensor, exact: torch.Tensor) -> Apart:
        found = apart(ours, theirs, exact, self.dtype)
        self.rows.setdefault(path, Row(path)).add(form, found)
        return found

    def _steps(self, published: Streamed) -> list[torch.Tensor]:
        """Every step of every piece; returns the published logits of each."""
        cache, logits = published.cache(), []
        paths = [m for s in self.program.steps if s.region.startswith(("embed", "head"))
                 for m in self.program.places[s.region]]
        for a, b in self.pieces:
            self.form, self.start = "decode" if b - a == 1 else "prefill", a
            tokens = self.tokens[:, a:b]
            self.values = self.regions.named(tokens, torch.arange(a, b).unsqueeze(0), 0)
            self.flow = ""
            outer: dict[str, Seen] = {}
            named = dict(published.model.named_modules())
            hooks = [watch(named[p], outer, p) for p in paths if p in named]
            logits.append(published.run(tokens, cache, functools.partial(self._layer, outer, published)))
            for hook in hooks:
                hook.remove()
            self._outer(len(self.program.steps) - 1, outer, published)
        return logits

    def _region(self, number: int) -> Region:
        return self.program.regions[self.program.steps[number].region]

    def _ours(self, number: int) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        """What a step is given, and what it gives: its values by name."""
        call, inputs = self.regions.steps.ready(number, self.form, self.values, every_row=True)
        given = [t.clone() if role == "cache" else t
                 for t, (_, role, _) in zip(inputs, self._region(number).inputs, strict=True)]
        with torch.no_grad():
            return given, dict(zip(self.program.steps[number].outputs, call(list(inputs)), strict=True))

    def _inside(self, region: Region, given: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """What the region's text makes of what it is given, by the names that places have."""
        kept = kept_of(self.model.artifact.json("program.json"), region.name) if self.model.kept else {}
        given = [kept[name].plain(t) if name in kept and isinstance(t, torch.Tensor) else t
                 for t, (name, _, _) in zip(given, region.inputs, strict=True)]
        with self.model.device.calling():
            return divergence.values(region, given, self.program.places[region.name], self.model.device.kernels,
                                     str(self.place))

    def _outer(self, number: int, outer: dict[str, Seen], published: Streamed) -> None:
        """The embed or the head step: each module that ends in one of the step's outputs, and blame inside."""
        region, step = self._region(number), self.program.steps[number]
        places = self.program.places[step.region]
        given, ours = self._ours(number)
        exact = self._exact(outer, published) if self.wide else outer
        returned = dict(zip(re.findall(r"\w+", region.body[-1])[1:], step.outputs, strict=True))
        made = {**self.values, **ours}
        self.values, bad = dict(made), False
        for module, place in places.items():
            names = [returned[o] for o in place.outputs if o in returned]
            if module not in outer or len(names) != len(place.outputs):
                continue
            pairs = divergence.paired([made[n] for n in names], outer[module].outputs, exact[module].outputs)
            for name, (mine, theirs, sure) in zip(names, pairs or (), strict=bool(pairs)):
                bad |= self._compare(module, self.form, mine, theirs, sure).diverges
                self.values[name] = theirs.reshape(mine.shape).contiguous().to(self.place)
                if published.model.get_submodule(module) is published.model.get_input_embeddings():
                    self.flow = name
        if bad and self.blamed is None:
            blame = divergence.first(places, self._inside(region, given), outer, exact, self.dtype)
            self._blame(blame, "")

    def _exact(self, outer: dict[str, Seen], published: Streamed) -> dict[str, Seen]:
        """The modules outside the layers in float32, each given what the one before it made in float32."""
        made: dict[tuple, torch.Tensor] = {}
        exact: dict[str, Seen] = {}
        for path, seen in outer.items():
            inputs = tuple(made.get((t.data_ptr(), t.shape), widened(t)) for t in seen.inputs)
            with torch.no_grad():
                outputs = tensors(wide_copy(published.model.get_submodule(path))(*inputs))
            made.update(zip(((t.data_ptr(), t.shape) for t in seen.outputs), outputs, strict=True))
            exact[path] = Seen(inputs, tuple(outputs))
        return exact

    def _layer(self, outer: dict[str, Seen], published: Streamed, call: Call) -> None:
        """One layer: compare its output and what it wrote into the cache; on the first divergence look inside."""
        if not self.flow:
            self._outer(0, outer, published)
        number = self.steps[call.path]
        self.values[self.flow] = call.hidden.contiguous().to(self.place)
        self._feed(call)
        given, ours = self._ours(number)
        plain, seen, after = call.again(wide=False)
        exact, sure, exact_after = call.again(wide=True) if self.wide else (plain, seen, after)
        self.flow = next(name for name, value in ours.items() if value.is_floating_point())
        form, self.routed = self.form, self.routed or bool(divergence.routers(seen))
        mine = ours[self.flow].cpu()
        alike = self._choices(call.path, ours, seen, sure)
        found = apart(mine[alike], plain[alike], exact[alike], self.dtype)
        if found.diverges:
            swapped, ties = self._ties(call, number, given, seen, sure)
            if swapped:
                plain, seen, after = call.again(wide=False, swapped=swapped)
                exact, sure, exact_after = call.again(wide=True, swapped=swapped) if self.wide else (plain, seen, after)
                found = apart(mine[alike], plain[alike], exact[alike], self.dtype)
                self.rows.setdefault(call.path, Row(call.path)).ties += ties
        row = self.rows.setdefault(call.path, Row(call.path))
        row.add(form, found)
        bad = found.diverges
        for name, cache in self._caches(call.number).items():
            rows, sure_rows = (cached(c, name)[:, self.start:] for c in (after, exact_after))
            written = apart(cache[:, self.start:self.start + rows.shape[1]], rows, sure_rows, self.dtype)
            row.add(form, written)
            bad |= written.diverges
        if bad and self.blamed is None:
            places = self.program.places[self.program.steps[number].region]
            made = self._inside(self._region(number), given)
            self._blame(divergence.first(places, made, seen, sure, self.dtype), call.path)
        self.values[self.flow] = plain.contiguous().to(self.place)

    def _ties(self, call: Call, number: int, given: list[torch.Tensor], seen: dict[str, Seen],
              sure: dict[str, Seen]) -> tuple[dict[str, torch.Tensor], int]:
        """Where the published router, given our own input of it, chooses otherwise than for the published input, and the two
        inputs agree: our inputs by router, and for how many tokens it is so."""
        chosen = divergence.routers(seen)
        places = self.program.places[self.program.steps[number].region]
        if not any(path in places for path in chosen):
            return {}, 0
        made = self._inside(self._region(number), given)
        swapped: dict[str, torch.Tensor] = {}
        for path in chosen:
            pairs = divergence.paired([made[n] for n in places[path].inputs if n in made] if path in places else [],
                                      seen[path].inputs, sure[path].inputs)
            if pairs and len(pairs) == 1 and not apart(*pairs[0], self.dtype).diverges:
                swapped[path] = pairs[0][0].cpu()
        again = divergence.routers(call.again(wide=False, swapped=swapped)[1]) if swapped else {}
        ties = sum(int((now.sort(-1).values != chosen[path].sort(-1).values).any(-1).sum())
                   for path, now in again.items() if path in swapped)
        return swapped, ties

    def _choices(self, path: str, ours: dict[str, torch.Tensor], seen: dict[str, Seen], sure: dict[str, Seen]) -> torch.Tensor:
        """Compare what an indexer chose; the tokens [B, S] that are compared further. Later layers get the published choice."""
        chosen, theirs = next((n for n, v in ours.items() if v.dtype == torch.int32), None), divergence.choices(seen)
        exact = divergence.choices(sure)
        if chosen is None or theirs is None or exact is None:
            return torch.ones(ours[self.flow].shape[:2], dtype=torch.bool)
        found, same = divergence.chosen_apart(ours[chosen].cpu(), theirs, exact, self.start)
        self.rows.setdefault(f"{path}.self_attn.indexer", Row(f"{path}.self_attn.indexer")).add(self.form, found)
        if found.diverges and self.blamed is None:
            self.blamed = f"{path}.self_attn.indexer"
        self.values[chosen] = theirs.contiguous().to(self.place) if theirs.shape == ours[chosen].shape else ours[chosen]
        return same

    def _caches(self, layer: int) -> dict[str, torch.Tensor]:
        """Our caches of a layer by our names."""
        return {n: self.values[f"cache:{n}.{layer}"] for n in CACHES if f"cache:{n}.{layer}" in self.values}

    def _feed(self, call: Call) -> None:
        """Write what the published cache of a layer held before the call into ours."""
        if self.start:
            for name, ours in self._caches(call.number).items():
                ours[:, :self.start].copy_(cached(call.before, name))

    def _blame(self, blame: divergence.Blame, around: str) -> None:
        self.blamed = ".".join(p for p in (around, blame.module) if p) or "model"
        inside = f"{blame.compared} modules inside compared, {blame.skipped} fused away or without a counterpart"
        if blame.module is None:
            inside = (f"the region's text agrees where it can be compared; its code in the form {self.form}, or a step after "
                      f"the last module, does not; {inside}")
        self.notes.append(f"{self.blamed}, {self.form}: {inside}")
