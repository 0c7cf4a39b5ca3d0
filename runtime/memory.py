"""The KV cache: allocated once for the artefact's bounds, written in place, read up to the filled slots only."""

from __future__ import annotations

from typing import Any

import torch


class Cache:
    """keys and values of every layer as one tensor [layers, 2, rows, slots, Hkv, D]; memory is touched as slots fill.

    One slot more than max_len: compiled code was made for views that are never the whole cache (see passes/lower.py).
    """

    def __init__(self, dims: dict[str, Any], dtype: torch.dtype, max_batch: int, max_len: int, device: torch.device) -> None:
        self.whole = torch.zeros(dims["layers"], 2, max_batch, max_len + 1, dims["kv_heads"], dims["head_dim"], dtype=dtype,
                                 device=device)

    def views(self, first: int, rows: int, slots: int) -> dict[str, torch.Tensor]:
        """Rows `first` to `first + rows`, the first `slots` slots: {"keys.0": [rows, slots, Hkv, D], ...}."""
        cut = self.whole.narrow(2, first, rows).narrow(3, 0, slots)
        return {f"{kind}.{layer}": tensor
                for layer, pair in enumerate(cut.unbind(0))
                for kind, tensor in zip(("keys", "values"), pair.unbind(0), strict=True)}
