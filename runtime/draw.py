"""Choosing tokens where the logits are: all rows at once in fixed shapes, so that the host is told once, and late.

The same arithmetic as `glmc.runtime.sample` has for one row on a CPU, which leaves out what cannot be chosen; here it stays,
with no weight, since to leave it out a device would have to tell the host how much is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from glmc.errors import NumericError
from glmc.runtime.transfer import Coming

LOGITS, PENALISED = "the logits", "the logits after the repetition penalty"


def greedy(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of [B, V] the lowest index among equal maxima, int64 [B], and the maximum [B], which is NaN if any value is.

    Which of equal maxima `max` and `argmax` take on a device is not promised; a row that holds NaN gives V - 1.
    """
    best, last = scores.amax(-1, keepdim=True), scores.shape[-1] - 1
    index = torch.arange(last + 1, device=scores.device)
    return torch.where(scores == best, index, last).amin(-1), best.squeeze(-1)


def penalised(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """`scores` [B, V] float32, divided (multiplied where negative) by `penalty` where `seen` [B, V] bool."""
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def drawn(scores: Tensor, uniforms: Tensor, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """One token a row, int64 [B], by inverting the cumulative distribution of what top-k, then top-p leave; and its total [B].

    scores: float32 [B, V] after penalty and temperature. uniforms: float64 [B] in [0, 1). A row whose total is not finite
    chose nothing.
    """
    if 0 < top_k < scores.shape[-1]:
        scores = scores.masked_fill(scores < scores.topk(top_k).values[:, -1:], -math.inf)
    weights, order = torch.softmax(scores, -1), None
    if top_p < 1:
        weights, order = weights.sort(stable=True)
        goes = weights.double().cumsum(-1).float() <= 1 - top_p
        goes[:, -1] = False
        weights = weights.masked_fill(goes, 0)
    cumulative = weights.double().cumsum(-1)
    totals = cumulative[:, -1]
    found = torch.searchsorted(cumulative, (uniforms * totals).unsqueeze(-1), right=True).clamp_(max=scores.shape[-1] - 1)
    return (found if order is None else order.gather(-1, found)).squeeze(-1), totals


class Choice:
    """A token a row, `tokens` int64 [B], where the logits are. Whether they may be used the host learns by `ids`."""

    def __init__(self, tokens: Tensor, step: int, maxima: Sequence[tuple[str, Tensor]] = (), totals: Tensor | None = None,
                 options: str = "") -> None:
        """maxima: what it is -> values [B] that must be finite. totals: what `drawn` gives, under these options."""
        self.tokens, self._step, self._options = tokens, step, options
        self._names = [name for name, _ in maxima]
        told = [tokens, *(values for _, values in maxima), *(() if totals is None else (totals,))]
        self._coming = Coming(torch.stack([t.double() for t in told]))  # an id is far below 2**53

    def ids(self) -> list[int]:
        """The tokens on the host, once they are there. Raises NumericError naming the row and the step."""
        ids, *rest = self._coming.here().tolist()
        for name, values in zip(self._names, rest, strict=False):
            refuse_unless_finite(values, name, self._step)
        for row, total in enumerate(rest[-1] if len(rest) > len(self._names) else ()):
            refuse_unless_drawn(total, row, self._step, self._options)
        return [int(token) for token in ids]


def refuse_unless_finite(maxima: Sequence[float], what: str, step: int) -> None:
    """Raise NumericError for the first row whose maximum is not finite."""
    for row, value in enumerate(maxima):
        if not math.isfinite(value):
            found = "nan" if math.isnan(value) else "+inf" if value > 0 else "only -inf"
            raise NumericError(f"{what} are not finite", field=f"row {row}, step {step}", found=found,
                               expected="finite values, or -inf beside at least one finite value")


def refuse_unless_drawn(total: float, row: int, step: int, options: str) -> None:
    """Raise NumericError for a row that nothing could be drawn from."""
    if not math.isfinite(total):
        raise NumericError("penalty and temperature take the logits beyond float32", field=f"row {row}, step {step}",
                           found=options, hint="use temperature 0 for greedy")
