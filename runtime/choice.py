"""A token a row, where the logits are, and what the host learns of it: once, and late."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from glmc.errors import NumericError
from glmc.runtime.transfer import Coming

LOGITS, PENALISED = "the logits", "the logits after the repetition penalty"


class Choice:
    """A token a row, `tokens` int64 [B], where the logits are. Whether they may be used the host learns by `ids`."""

    def __init__(self, tokens: Tensor, step: int, told: Tensor | None = None, drawn: str | None = None) -> None:
        """told: what the kernels of a GPU say, float64 [3, B]: the tokens, the greatest logit, and the greatest one after the
        penalty, or where they were `drawn` with such options, what they were normalised over. None: they were looked at."""
        self.tokens, self._step, self._drawn = tokens, step, drawn
        self._coming = Coming(tokens.double().unsqueeze(0) if told is None else told)  # an id is far below 2**53

    def ids(self) -> list[int]:
        """The tokens on the host, once they are there. Raises NumericError naming the row and the step."""
        ids, *rest = self._coming.here().tolist()
        if rest:
            refuse_unless_finite(rest[0], LOGITS, self._step)
            if self._drawn is None:
                refuse_unless_finite(rest[1], PENALISED, self._step)
            else:
                for row, total in enumerate(rest[1]):
                    refuse_unless_drawn(total, row, self._step, self._drawn)
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
