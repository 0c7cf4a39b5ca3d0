"""The explicit state of a text model: tensors that published layers read and write through transformers' cache calls.

A layer's tensors, by what it attends with (B rows, L slots):

    keys, values             [B, L, Hkv, D]            attention over heads
    latent, turned           [B, L, 1, R], [B, L, 1, E]  latent attention: compressed rows, and their rotated lanes if any
    index                    [B, L, 1, W]              keys of the indexer, in layers that have one of their own
    convolved, state         [B, C, K], [B, H, D, D]   linear attention: last K columns of its convolution; float32 state

They are written in place. A new token goes to the slot that `where` [B, S] names.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional

Shape = tuple[int | str, ...]
Layout = list[dict[str, tuple[Shape, torch.dtype]]]


def layout(text: Any, dtype: torch.dtype) -> Layout:
    """Per layer: name -> (shape with the letters B and L, dtype). text: the published text configuration."""
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    return [_linear(text, dtype) if kind == "linear_attention" else _slotted(text, i, dtype)
            for i, kind in enumerate(kinds[:text.num_hidden_layers])]


def _slotted(text: Any, layer: int, dtype: torch.dtype) -> dict[str, tuple[Shape, torch.dtype]]:
    if getattr(text, "kv_lora_rank", None) is None:
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        shape = ("B", "L", text.num_key_value_heads, width)
        return {"keys": (shape, dtype), "values": (shape, dtype)}
    widths = {"latent": text.kv_lora_rank, "turned": text.qk_rope_head_dim}
    kinds = getattr(text, "indexer_types", None)
    if kinds is not None and kinds[layer] == "full":
        # A pooling indexer keeps its key, its gate and whether the slot is filled; a plain one its key.
        widths["index"] = text.index_head_dim * 2 + 1 if hasattr(text, "index_kpool") else text.index_head_dim
    return {name: (("B", "L", 1, width), dtype) for name, width in widths.items() if width}


def _linear(text: Any, dtype: torch.dtype) -> dict[str, tuple[Shape, torch.dtype]]:
    heads, width = text.linear_num_heads, text.linear_head_dim
    return {"convolved": (("B", 3 * heads * width, text.linear_conv_kernel_dim), dtype),
            "state": (("B", heads, width, width), torch.float32)}


class Slots:
    """The cache that transformers' layers call: writes new rows at `where`, returns all slots."""

    is_compileable = False

    def __init__(self, layers: list[dict[str, torch.Tensor]], where: torch.Tensor, slots: torch.Tensor) -> None:
        self.tensors, self.where, self.slots = layers, where, slots
        self._rows: tuple[int, Any] = (-1, None)
        self.layers = [_Layer(where, slots)] * len(layers)

    def _write(self, layer: int, name: str, new: torch.Tensor) -> torch.Tensor:
        """Put `new` [B, S, ...] into one cache; the numbers of the rows are made once a layer."""
        if layer != self._rows[0]:
            self._rows = (layer, torch.arange(new.shape[0], device=new.device).unsqueeze(1))
        return self.tensors[layer][name].index_put_((self._rows[1], self.where), new)

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any, **__: Any):
        """key, value [B, Hkv, S, D] go to their slots; returns both caches as [B, Hkv, L, D]."""
        first, second = ("latent", "turned") if "latent" in self.tensors[layer] else ("keys", "values")
        whole = self._write(layer, first, key.transpose(1, 2)).transpose(1, 2)
        if second not in self.tensors[layer]:
            return whole, value.new_empty(value.shape[0], 1, self.slots.shape[0], 0)
        return whole, self._write(layer, second, value.transpose(1, 2)).transpose(1, 2)

    def update_indexer(self, key: torch.Tensor, layer: int) -> torch.Tensor:
        """key [B, S, W] goes to its slots; returns the cache as [B, L, W]."""
        return self._write(layer, "index", key.unsqueeze(2)).squeeze(2)

    def get_conv_state(self, layer: int, state_idx: int = 0) -> torch.Tensor:
        return self.tensors[layer]["convolved"]

    def update_conv_state(self, new: torch.Tensor, layer: int, **_: Any) -> torch.Tensor:
        """new [B, C, S]: returns [B, C, K + S] with the K columns before them, and keeps the last K."""
        kept = self.tensors[layer]["convolved"]
        whole = torch.cat([kept, new.to(kept.dtype)], dim=-1)
        kept.copy_(whole[..., new.shape[-1]:])
        return whole

    def get_recurrent_state(self, layer: int, state_idx: int = 0) -> torch.Tensor:
        return self.tensors[layer]["state"]

    def update_recurrent_state(self, new: torch.Tensor, layer: int, **_: Any) -> torch.Tensor:
        return self.tensors[layer]["state"].copy_(new)

    def get_seq_length(self, *_: Any) -> int:
        return 0


class _Layer:
    """What a pooling indexer asks of its own layer's cache."""

    def __init__(self, where: torch.Tensor, slots: torch.Tensor) -> None:
        self.where, self.keys = where, SimpleNamespace(shape=(slots.shape[0], 1))

    def get_seq_length(self) -> torch.Tensor:
        """The slot of each new token [B, S]: a length for each, where transformers knows one for all."""
        return self.where


def pooled(indexer: Any, packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys of whole pools of `index_kpool` slots, counted from slot 0, as the published indexer weighs them.

    packed [B, L, 2 W + 1]: key, gate score, filled. Returns keys [B, P, W], slots int64 [B, P, k] (-1 where a slot is
    not filled) and whether all of the pool is filled [B, P]; P = ceil(L / k), where the published module leaves out
    pools that no row has filled, a size that depends on data.
    """
    size, rows, length = indexer.index_kpool, packed.shape[0], packed.shape[1]
    pools = (length + size - 1) // size
    packed = functional.pad(packed, (0, 0, 0, pools * size - length)).view(rows, pools, size, packed.shape[2])
    keys, gates, filled = packed.split([indexer.head_dim, indexer.head_dim, 1], dim=-1)
    logits = gates.float() + indexer.index_kpool_compress_ape.float()
    weights = logits.masked_fill(filled == 0, float("-inf")).softmax(dim=2).nan_to_num().to(keys.dtype)
    members = torch.arange(pools * size, device=packed.device).view(1, pools, size)
    taken = filled.squeeze(-1) != 0
    return (weights * keys).sum(dim=2), torch.where(taken, members, -1), taken.all(-1)
