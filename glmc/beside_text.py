"""A text model beside the published one: with its cache, with the slots that an indexer chooses, with experts that tie."""

from __future__ import annotations

import torch

from glmc import divergence
from glmc.beside import Beside, Values
from glmc.divergence import apart
from glmc.streamed import CACHES, Again, Call, cached


class BesideText(Beside):
    """`start`: position of the first token of the piece at hand. `routed`: some layer chose experts."""

    start, routed = 0, False

    def feed(self, call: Call) -> None:
        """Write what the published cache of a layer held before the call into ours."""
        if self.start:
            for name, ours in self._caches(call.number).items():
                ours[:, :self.start].copy_(cached(call.before, name))

    def differs(self, call: Call, number: int, given: list[torch.Tensor], ours: Values, plain: Again, exact: Again,
                ) -> tuple[Again, Again] | None:
        """The layer's output, of tokens whose indexer chose alike and with the experts that ours chose where they are as good,
        and what it wrote into the cache."""
        dtype, row = self.findings.dtype, self.findings.row(call.path)
        self.routed |= bool(divergence.routers(plain.seen))
        mine = ours[self.flow].cpu()
        alike = self._choices(call.path, ours, plain, exact)
        found = apart(mine[alike], plain.output[alike], exact.output[alike], dtype)
        if found.diverges:
            swapped, ties = self._ties(call, number, given, plain, exact)
            if swapped:
                plain, exact = call.both(self.findings.wide, swapped)
                found = apart(mine[alike], plain.output[alike], exact.output[alike], dtype)
                row.ties += ties
        row.add(self.form, found)
        bad = found.diverges
        for name, cache in self._caches(call.number).items():
            rows, sure = (cached(run.cache, name)[:, self.start:] for run in (plain, exact))
            written = apart(cache[:, self.start:self.start + rows.shape[1]], rows, sure, dtype)
            row.add(self.form, written)
            bad |= written.diverges
        return (plain, exact) if bad else None

    def _ties(self, call: Call, number: int, given: list[torch.Tensor], plain: Again, exact: Again) -> tuple[Values, int]:
        """Where the published router, given our own input of it, chooses otherwise than for the published input, and the two
        inputs agree: our inputs by router, and for how many tokens it is so."""
        chosen = divergence.routers(plain.seen)
        places = self.program.places[self.program.steps[number].region]
        if not any(path in places for path in chosen):
            return {}, 0
        made = self.inside(number, given)
        swapped: Values = {}
        for path in chosen:
            pairs = divergence.paired([made[n] for n in places[path].inputs if n in made] if path in places else [],
                                      plain.seen[path].inputs, exact.seen[path].inputs)
            if pairs and len(pairs) == 1 and not apart(*pairs[0], self.findings.dtype).diverges:
                swapped[path] = pairs[0][0].cpu()
        again = divergence.routers(call.again(wide=False, swapped=swapped).seen) if swapped else {}
        ties = sum(int((now.sort(-1).values != chosen[path].sort(-1).values).any(-1).sum())
                   for path, now in again.items() if path in swapped)
        return swapped, ties

    def _choices(self, path: str, ours: Values, plain: Again, exact: Again) -> torch.Tensor:
        """Compare what an indexer chose; the tokens [B, S] that are compared further. Later layers get the published choice."""
        chosen = next((n for n, v in ours.items() if v.dtype == torch.int32), None)
        theirs, sure = divergence.choices(plain.seen), divergence.choices(exact.seen)
        if chosen is None or theirs is None or sure is None:
            return torch.ones(ours[self.flow].shape[:2], dtype=torch.bool)
        found, same = divergence.chosen_apart(ours[chosen].cpu(), theirs, sure, self.start)
        self.findings.row(f"{path}.self_attn.indexer").add(self.form, found)
        if found.diverges and self.findings.first is None:
            self.findings.first = f"{path}.self_attn.indexer"
        self.values[chosen] = theirs.contiguous().to(self.place) if theirs.shape == ours[chosen].shape else ours[chosen]
        return same

    def _caches(self, layer: int) -> Values:
        """Our caches of a layer by our names."""
        return {n: self.values[f"cache:{n}.{layer}"] for n in CACHES if f"cache:{n}.{layer}" in self.values}
