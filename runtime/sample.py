"""The next token from logits: repetition penalty, temperature, top-k and top-p as transformers' generate applies them.

Greedy (temperature 0) is one pass over the logits. Sampling draws one uniform number per row and step from that row's
own CPU generator and inverts the cumulative distribution, so a draw depends neither on the batch nor on the device. Logits
that are on a GPU are chosen from there, by kernels of our own (`glmc.kernels.sample`).
"""

from __future__ import annotations

import contextlib
import math
import secrets
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from glmc import kernels
from glmc.errors import RequestOutOfBounds, UsageError
from glmc.runtime import choice
from glmc.runtime.choice import Choice
from glmc.runtime.transfer import to_device


def _require(ok: bool, field: str, expected: str, found: object) -> None:
    """Raise UsageError naming the sampling option `field` unless `ok`."""
    if not ok:
        raise UsageError("the sampling option is out of range", field=field, expected=expected, found=found)


def _is_int(value: object) -> bool:
    """Whether `value` is a whole number; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    """Whether `value` is a finite int or float; True and False are not."""
    return (_is_int(value) or isinstance(value, float)) and math.isfinite(value)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Sampling:
    """How to choose a token. The defaults are greedy; top_k and top_p then have no effect, the penalty has.

    temperature: 0 is greedy. top_k: 0 is off. top_p: 1 is off. repetition_penalty: 1 is off, above 1 discourages.
    seed: 0 to 2**63 - 1, or None for fresh entropy. Raises UsageError naming the field that is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        t, k, p, r, s = self.temperature, self.top_k, self.top_p, self.repetition_penalty, self.seed
        _require(_is_finite(t) and t >= 0, "temperature", "a finite number, 0 or more", t)
        _require(_is_int(k) and k >= 0, "top_k", "a whole number, 0 or more", k)
        _require(_is_finite(p) and 0 < p <= 1, "top_p", "a number above 0 and at most 1", p)
        _require(_is_finite(r) and r > 0, "repetition_penalty", "a finite number above 0", r)
        _require(s is None or (_is_int(s) and 0 <= s < 2**63), "seed", "a whole number from 0 to 2**63 - 1", s)


def largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of [B, V] the lowest index among equal maxima, the greedy answer, int64 [B], and the maximum [B].

    On a CPU. One pass checks every value: the maximum is NaN if any value is, +inf if any is, and -inf only if all are. numpy's
    pass is several times quicker than torch's where it can be had.
    """
    if logits.dtype == torch.float32:
        tokens = torch.from_numpy(logits.numpy().argmax(-1))
        return tokens, logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    best = logits.max(dim=-1)
    return best.indices, best.values


def penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """A copy of `logits` [B, V] float32, divided (multiplied where negative) by `penalty` where `seen` [B, V] bool."""
    at = seen.nonzero(as_tuple=True)  # few of many: gathering them costs less than arithmetic on the whole width
    values = logits[at]
    return logits.index_put(at, torch.where(values < 0, values * penalty, values / penalty))


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Positions [n] int64, least probable first, of the smallest set of `probabilities` [V] float32 with mass >= top_p.

    As in transformers: in ascending order, a position goes when the cumulative mass up to and including it is at most
    1 - top_p, and the most probable one always stays. Of equal values the lowest positions go first; transformers,
    whose sort is not stable, leaves that open.
    """
    # A probability of at most (1 - top_p) / 2V cannot bring the ascending sum above (1 - top_p) / 2, so all of those go
    # without being sorted: sorting a whole vocabulary would cost more than everything else here together.
    in_doubt = probabilities > (1 - top_p) / (2 * probabilities.numel())
    tail = torch.where(in_doubt, 0, probabilities).sum(dtype=torch.float64)
    positions = in_doubt.nonzero().squeeze(1)
    ascending, order = torch.sort(probabilities[positions], stable=True)
    # transformers' cumsum accumulates float32 in float64 on a CPU and rounds each sum back: so does this.
    cumulative = (tail + ascending.double().cumsum(0)).float()
    goes = cumulative <= (1 - top_p)
    goes[-1:] = False
    return positions[order[~goes]]


def survivors(scores: Tensor, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """The tokens of one row that top-k, then top-p leave: ids [n] int64 and their weights [n] float32, not normalised.

    scores: [V] float32 after penalty and temperature. Ties at the k-th value all stay, so n may exceed top_k.
    """
    ids = None
    if 0 < top_k < scores.numel():
        ids = (scores >= torch.topk(scores, top_k).values[-1]).nonzero().squeeze(1)
        scores = scores[ids]
    weights = torch.softmax(scores, dim=-1)
    if top_p < 1:
        kept = nucleus(weights, top_p)
        ids, weights = kept if ids is None else ids[kept], weights[kept]
    return torch.arange(scores.numel(), device=scores.device) if ids is None else ids, weights


class Sampler:
    """Chooses tokens for a batch of `rows` sequences, step after step.

    `seed` is the seed in use, for reporting. Every row has its own generator with that same seed, so a prompt samples
    the same tokens alone and in any batch; equal prompts in one batch therefore sample equal tokens. `step` counts
    the calls made so far. calling: entered around the kernels of a GPU, as a device has it for its regions.
    """

    def __init__(self, sampling: Sampling, rows: int,
                 calling: Callable[[], AbstractContextManager] = contextlib.nullcontext) -> None:
        _require(_is_int(rows) and rows > 0, "rows", "a whole number, 1 or more", rows)
        self.sampling = sampling
        self.rows = rows
        self._calling = calling
        self.seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self.step = 0
        self._generators = [torch.Generator().manual_seed(self.seed) for _ in range(rows)]
        self._seen: Tensor | None = None  # bool [B, V], made at the first call, which is what tells V
        self._waiting: list[tuple[int, Tensor]] = []  # ids observed since the last call

    def observe(self, row: int, ids: Sequence[int] | Tensor) -> None:
        """Count `ids` (whole numbers, any length) as seen by `row`, 0-based, from the next call on.

        For prompts and for tokens chosen elsewhere; the sampler observes its own. Ids beyond the logits' width are
        ignored as in transformers. Raises RequestOutOfBounds for a row or an id that cannot be.
        """
        if not 0 <= row < self.rows:
            raise RequestOutOfBounds("no such row in the batch", field="row", expected=f"below {self.rows}", found=row)
        if self.sampling.repetition_penalty != 1:  # nothing else reads what was seen
            self._waiting.append((row, _ids(ids)))

    def __call__(self, logits: Tensor, seen: Sequence[Tensor] | Tensor | None = None) -> Tensor:
        """The next token of every row, LongTensor [B] on the logits' device, once it is known to be one. See `choose`."""
        chosen = self.choose(logits, seen)
        chosen.ids()
        return chosen.tokens

    def choose(self, logits: Tensor, seen: Sequence[Tensor] | Tensor | None = None) -> Choice:
        """The next token of every row, on the logits' device; from a GPU the host has not heard yet of what is chosen.

        logits: float32 or bfloat16 [B, V]. seen: what the penalty applies to in this call instead of what the sampler
        observed, a bool mask [B, V] or one int64 tensor of ids a row. Raises RequestOutOfBounds for a wrong shape or dtype,
        and, here or by the choice's `ids`, NumericError naming the row and the step for NaN, +inf or a row of only -inf.
        """
        if logits.dim() != 2 or logits.shape[0] != self.rows or not logits.shape[1] or not logits.is_floating_point():
            raise RequestOutOfBounds("the logits do not fit the sampler", expected=f"float [{self.rows}, V]",
                                     found=f"{logits.dtype} {list(logits.shape)}")
        chosen = (self.here if logits.device.type == "cpu" else self.there)(logits, seen)
        if self._seen is not None:
            self._seen.scatter_(1, chosen.tokens[:, None], True)
        self.step += 1
        return chosen

    def here(self, logits: Tensor, seen: Sequence[Tensor] | Tensor | None) -> Choice:
        """`choose` on a CPU: row by row, of each only what can be chosen. Counts no step."""
        tokens, values = largest(logits)
        choice.refuse_unless_finite(values.tolist(), choice.LOGITS, self.step)
        options = self.sampling
        if options.repetition_penalty != 1 or options.temperature > 0:
            scores = logits.float()
            if options.repetition_penalty != 1:
                scores = penalised(scores, self._mask(logits, seen), options.repetition_penalty)
            if options.temperature > 0:
                tokens = torch.stack([self._draw(row, scores[row] / options.temperature) for row in range(self.rows)])
            else:
                tokens, values = largest(scores)
                choice.refuse_unless_finite(values.tolist(), choice.PENALISED, self.step)
        return Choice(tokens, self.step)

    def there(self, logits: Tensor, seen: Sequence[Tensor] | Tensor | None) -> Choice:
        """`choose` on a device: the same tokens, all rows at once, and nothing that the host would have to wait for."""
        options, uniforms = self.sampling, None
        mask = self._mask(logits, seen) if options.repetition_penalty != 1 else None
        if options.temperature > 0:
            uniforms = to_device(torch.stack([self._uniform(row) for row in range(self.rows)]), logits.device)
        with self._calling():
            tokens, told = kernels.load("sample", "triton").run(
                logits, mask, uniforms, penalty=options.repetition_penalty, temperature=options.temperature,
                top_k=options.top_k, top_p=options.top_p)
        return Choice(tokens, self.step, told, self._options() if options.temperature > 0 else None)

    def _draw(self, row: int, scores: Tensor) -> Tensor:
        """One token id (int64 scalar) of `row` from scores [V] float32, by inverting the cumulative distribution."""
        ids, weights = survivors(scores, self.sampling.top_k, self.sampling.top_p)
        cumulative = weights.double().cumsum(0)
        total = cumulative[-1].item() if weights.numel() else math.nan
        choice.refuse_unless_drawn(total, row, self.step, self._options())
        # A uniform is at most 1 - 2**-53, so the product rounds below total: some sum exceeds it, and the first has weight > 0.
        return ids[torch.searchsorted(cumulative, self._uniform(row).item() * total, right=True)]

    def _uniform(self, row: int) -> Tensor:
        return torch.rand((), dtype=torch.float64, generator=self._generators[row])

    def _options(self) -> str:
        return f"temperature {self.sampling.temperature}, penalty {self.sampling.repetition_penalty}"

    def _mask(self, logits: Tensor, seen: Sequence[Tensor] | Tensor | None) -> Tensor:
        """The bool mask [B, V] the penalty applies to: `seen` when given, else what this sampler observed."""
        if isinstance(seen, Tensor):
            if seen.dtype != torch.bool or seen.shape != logits.shape:
                raise RequestOutOfBounds("the mask of seen tokens does not fit", expected=f"bool {list(logits.shape)}",
                                         found=f"{seen.dtype} {list(seen.shape)}")
            return seen.to(logits.device)
        if seen is not None:
            if len(seen) != self.rows:
                raise RequestOutOfBounds("one list of seen tokens a row is needed", expected=self.rows, found=len(seen))
            mask = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
            _mark(mask, [(row, _ids(ids)) for row, ids in enumerate(seen)])
            return mask
        if self._seen is None:
            self._seen = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
        if self._seen.shape != logits.shape:
            raise RequestOutOfBounds("the vocabulary changed between steps", expected=self._seen.shape[1],
                                     found=logits.shape[1])
        _mark(self._seen, self._waiting)
        self._waiting = []
        return self._seen


def _ids(ids: Sequence[int] | Tensor) -> Tensor:
    """`ids` as a 1-D int64 tensor on the CPU. Raises RequestOutOfBounds unless all are whole and not negative."""
    if isinstance(ids, Tensor):
        whole = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
        flat = ids.detach().cpu().reshape(-1).long() if whole else None
    else:
        flat = torch.tensor(ids, dtype=torch.int64) if all(_is_int(i) and 0 <= i < 2**63 for i in ids) else None
    if flat is None or (flat.numel() and int(flat.min()) < 0):
        raise RequestOutOfBounds("a token id is not a whole number of 0 or more", field="ids")
    return flat


def _mark(mask: Tensor, observed: Sequence[tuple[int, Tensor]]) -> None:
    """Set the observed (row, ids) in `mask` [B, V]. Ids of V and above cannot be generated, so they are left out."""
    for row, ids in observed:
        mask[row, ids[ids < mask.shape[1]].to(mask.device)] = True
