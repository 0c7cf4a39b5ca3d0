"""The published transformers model, on the meta device, with positions and KV cache as explicit inputs.

What crosses the boundary of a traced text model (B rows, S new tokens a row, L cache slots a row):

    input_ids   int64 [B, S]
    positions   int64 [B, S]   slot of the cache that each new token writes, and its RoPE position
    slots       int64 [L]      0, 1, ... L-1; only its length matters to the maths
    keys_i      [B, L, Hkv, D] cache of layer i, written in place
    values_i    [B, L, Hkv, D] the same for values
    -> logits   [B, S, vocabulary]

A new token sees slot j when j <= its own position, so rows of unequal length need no padding.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn

from glmc.errors import ConfigError
from glmc.trace import Trace, trace


def attention(module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
              attention_mask: torch.Tensor | None, scaling: float | None = None, **_: Any):
    """Attention as transformers' interface wants it: query [B, H, S, D], key and value [B, Hkv, L, D]."""
    out = torch.ops.glmc.attention(query, key, value, attention_mask, scaling)
    return out.transpose(1, 2).contiguous(), None


# One opaque step: written out, its symbolic shapes cost 40 % of the time of a trace. The kernel of the same name runs it.
torch.library.define("glmc::attention", "(Tensor query, Tensor key, Tensor value, Tensor visible, float scale) -> Tensor")


@torch.library.impl("glmc::attention", "Meta")
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor, scale: float):
    return query.new_empty(query.shape)


class Slots:
    """The cache that transformers' attention calls `update` on: writes new rows at `positions`, returns all slots."""

    is_compileable = False

    def __init__(self, pairs: list[tuple[torch.Tensor, torch.Tensor]], positions: torch.Tensor) -> None:
        self.pairs, self.positions = pairs, positions

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any, **__: Any):
        """key, value [B, Hkv, S, D] go to their slots; returns both caches as [B, Hkv, L, D]."""
        rows = torch.arange(key.shape[0], device=key.device).unsqueeze(1)
        written = [cache.index_put_((rows, self.positions), new.transpose(1, 2))
                   for cache, new in zip(self.pairs[layer], (key, value), strict=True)]
        return written[0].transpose(1, 2), written[1].transpose(1, 2)

    def get_seq_length(self, *_: Any) -> int:
        return 0


class Explicit(nn.Module):
    """The published model with the boundary of this module's docstring."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        for module in model.modules():
            plain = getattr(type(module).forward, "__wrapped__", None)
            if plain is not None and hasattr(module, "inv_freq"):
                # Published under `torch.no_grad()`, as the whole trace is: the decorator would split the exported graph
                # and join it again, a tenth of a large trace.
                module.forward = MethodType(plain, module)

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor,
                caches: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        visible = slots[None, None, None, :] <= positions[:, None, :, None]
        return self.model(input_ids=input_ids, attention_mask=visible, position_ids=positions,
                          past_key_values=Slots(caches, positions), use_cache=True).logits


def build(config: dict[str, Any], dtype: torch.dtype, device: str = "meta") -> nn.Module:
    """The published class for `config`, in `dtype` (parameters that transformers keeps in float32 stay so)."""
    from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

    AttentionInterface.register("glmc", attention)
    fields = {k: v for k, v in config.items() if k not in ("auto_map", "quantization_config", "torch_dtype", "dtype")}
    try:
        parsed = AutoConfig.for_model(**fields)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError("transformers refuses this configuration", field="config.json", found=str(error)) from error
    experts = {"experts_implementation": "grouped_mm"} if "n_routed_experts" in config else {}
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(parsed, dtype=dtype, attn_implementation="glmc", **experts)
    return model.eval()


def computed_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Buffers that no checkpoint holds (RoPE frequencies), made on the CPU by the published module itself."""
    made: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules():
        for name in sorted(module._non_persistent_buffers_set):
            fresh = type(module)(module.config)
            made[f"{path}.{name}"] = getattr(fresh, name).detach()
    return made


def trace_model(module: nn.Module, dtype: torch.dtype, layers: int, kv_heads: int, head_dim: int,
                ) -> tuple[Trace, dict[str, str]]:
    """One trace for every shape: rows, new tokens and slots are all dynamic. Also the tracer's symbols as B, S, L."""
    rows, tokens, slots = 2, 5, 16
    whole = torch.zeros(rows, tokens, dtype=torch.int64, device="meta")

    def cache() -> torch.Tensor:
        return torch.zeros(rows, slots, kv_heads, head_dim, dtype=dtype, device="meta")

    b, s, length = (torch.export.Dim(letter, min=2, max=1 << 20) for letter in "BSL")
    args = (whole, whole.clone(), torch.zeros(slots, dtype=torch.int64, device="meta"),
            [(cache(), cache()) for _ in range(layers)])
    dynamic = ({0: b, 1: s}, {0: b, 1: s}, {0: length}, [({0: b, 1: length}, {0: b, 1: length})] * layers)
    traced = trace(Explicit(module), args, dynamic)
    names = {n.name: n.meta["val"] for n in traced.graph.nodes if n.op == "placeholder" and n.name in traced.inputs[:3]}
    ids, slot = names[traced.inputs[0]], names[traced.inputs[2]]
    return traced, {str(ids.shape[0]): "B", str(ids.shape[1]): "S", str(slot.shape[0]): "L"}
