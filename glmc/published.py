"""The published transformers model, on the meta device, with positions, KV cache and other state as explicit inputs.

What crosses the boundary of a traced text model (B rows, S new tokens a row, L cache slots a row):

    input_ids   int64 [B, S]
    positions   int64 [B, S]     slot of the cache that each new token writes, and its RoPE position; or
                      [3, B, S]  RoPE positions over time, height and width
    slots       int64 [L]        0, 1, ... L-1; only its length matters to the maths
    where       int64 [B, S]     the slot that each new token writes, where positions have three rows
    features    [M, hidden]      what the vision tower made of images and frames, where there is a tower
    media       int64 [B, S]     the row of `features` that a token is, -1 for text
    caches      per layer the tensors that glmc/cache.py names, written in place
    -> logits   [B, S, vocabulary]

A new token sees slot j when j <= its own slot, so rows of unequal length need no padding.
"""

from __future__ import annotations

from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from glmc.axes_in_model import follow
from glmc.cache import Slots, pooled
from glmc.errors import ConfigError


def attention(module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
              attention_mask: torch.Tensor, scaling: float | None = None, indices: torch.Tensor | None = None, **_: Any):
    """Attention as transformers' interface wants it: query [B, H, S, D], key [B, Hkv, L, D], value [B, Hkv, L, V].

    indices: int [B, S, T], the slots that a sparse indexer chose; of these only the visible ones are seen.
    """
    if indices is not None:
        size = (query.shape[0], query.shape[2], key.shape[2])
        chosen = torch.zeros(size, dtype=torch.bool, device=query.device).scatter_(-1, indices.long(), True)
        attention_mask = attention_mask & chosen.unsqueeze(1)
    elif attention_mask.dtype != torch.bool:
        attention_mask = attention_mask == 0  # an additive mask: 0 where a slot is seen
    out = torch.ops.glmc.attention(query, key, value, attention_mask, scaling)
    return out.transpose(1, 2).contiguous(), None


# One opaque step: written out, its symbolic shapes cost 40 % of the time of a trace. The kernel of the same name runs it.
torch.library.define("glmc::attention", "(Tensor query, Tensor key, Tensor value, Tensor visible, float scale) -> Tensor")


@torch.library.impl("glmc::attention", "Meta")
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor, scale: float):
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


# A gather by numbers that no trace knows. The kernel of the same name runs it.
torch.library.define("glmc::place_media", "(Tensor x, Tensor features, Tensor media) -> Tensor")


@torch.library.impl("glmc::place_media", "Meta")
def _(x: torch.Tensor, features: torch.Tensor, media: torch.Tensor):
    return x.new_empty(x.shape)


# The recurrence of linear attention loops over tokens, which no graph with a symbolic length can hold.
torch.library.define("glmc::delta_rule", "(Tensor query, Tensor key, Tensor value, Tensor decay, Tensor share, "
                     "Tensor state) -> (Tensor, Tensor)")


@torch.library.impl("glmc::delta_rule", "Meta")
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, decay: torch.Tensor, share: torch.Tensor,
      state: torch.Tensor):
    return value.new_empty(value.shape), state.new_empty(state.shape)


def _delta_rule(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, g: torch.Tensor, beta: torch.Tensor,
                initial_state: torch.Tensor, **_: Any):
    """The published function's call, as one opaque step."""
    return torch.ops.glmc.delta_rule(query, key, value, g, beta, initial_state)


class Explicit(nn.Module):
    """The published model with the boundary of this module's docstring. `names`: of each layer's cache tensors."""

    def __init__(self, model: Any, names: list[tuple[str, ...]]) -> None:
        super().__init__()
        self.names, self.text = names, model.config.get_text_config()
        self.nested = hasattr(model.model, "language_model")
        self.model: Any = _without_others(model) if self.nested else model
        for module in self.model.modules():
            _prepare(module)

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor,
                caches: list[tuple[torch.Tensor, ...]]) -> torch.Tensor:
        return self.logits(input_ids, positions, slots, positions, caches)

    def logits(self, input_ids: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, where: torch.Tensor,
               caches: list[tuple[torch.Tensor, ...]], embeddings: torch.Tensor | None = None) -> torch.Tensor:
        cache = Slots([dict(zip(n, c, strict=True)) for n, c in zip(self.names, caches, strict=True)], where, slots)
        visible: Any = slots[None, None, None, :] <= where[:, None, :, None]
        if "linear_attention" in (getattr(self.text, "layer_types", None) or ()):
            # These models take a mask of padding, of which there is none, and find out themselves what is visible.
            visible = {"indexed_attention": torch.ones_like(where, dtype=torch.bool), "linear_attention": None}
        tokens = {"input_ids": input_ids} if embeddings is None else {"inputs_embeds": embeddings}
        given = {**tokens, "attention_mask": visible, "position_ids": positions,
                 "past_key_values": cache, "use_cache": True}
        if not self.nested:
            return self.model(**given).logits
        return self.model.lm_head(self.model.model.language_model(**given).last_hidden_state)


class ExplicitRows(Explicit):
    """The same for positions of three rows, which are not the slots that are written."""

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor,  # type: ignore[override]
                where: torch.Tensor, caches: list[tuple[torch.Tensor, ...]]) -> torch.Tensor:
        return self.logits(input_ids, positions, slots, where, caches)


class ExplicitMedia(Explicit):
    """The same with the features of images and frames in the place of their tokens' embeddings."""

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor,  # type: ignore[override]
                where: torch.Tensor, features: torch.Tensor, media: torch.Tensor, caches: list[tuple[torch.Tensor, ...]],
                ) -> torch.Tensor:
        embedded = self.model.model.language_model.embed_tokens(input_ids)
        placed = torch.ops.glmc.place_media(embedded, features, media)
        return self.logits(input_ids, positions, slots, where, caches, placed)


def takes_features(model: Any) -> bool:
    """Whether tokens of the text model are rows that a vision tower makes; an image tokenizer makes ids instead."""
    return hasattr(model.model, "visual") and not hasattr(model.model, "vqmodel")


def _without_others(model: Any) -> nn.Module:
    """A stand-in for `model` that holds its language model and head at the same paths, and nothing else."""
    made, inner = nn.Module(), nn.Module()
    inner.language_model = model.model.language_model
    made.model, made.lm_head = inner, model.lm_head
    return made


def _prepare(module: Any) -> None:
    """Replace what cannot be traced, or only slowly, on one module of a published model."""
    forward = type(module).forward
    plain = getattr(forward, "__wrapped__", None)
    if plain is not None and hasattr(module, "inv_freq"):
        # Published under `torch.no_grad()`, as the whole trace is: the decorator would split the exported graph and join
        # it again, a tenth of a large trace.
        module.forward = MethodType(plain, module)
    if plain is not None and hasattr(module, "index_topk"):
        module.forward = MethodType(_with_names(plain, min=_chosen), module)
    if plain is not None and hasattr(module, "forget_gate"):
        module.forward = MethodType(_with_names(plain, chunk_kimi_delta_attention=_delta_rule), module)
    if hasattr(module, "index_kpool"):
        module.get_pooled_states = MethodType(_pooled, module)
        module.get_visible_tokens = MethodType(_visible, module)


def _with_names(function: Any, **names: Any) -> FunctionType:
    """A copy of a published function in which some global names mean something else; the published one stays as it is."""
    return FunctionType(function.__code__, {**function.__globals__, **names}, function.__name__, function.__defaults__)


def _chosen(wanted: int, slots: Any) -> int:
    """How many slots an indexer chooses, in the place of `min`: there are at least as many as it wants."""
    return wanted


def _pooled(self: nn.Module, packed_states: torch.Tensor):
    return pooled(self, packed_states)


def _visible(self: nn.Module, valid_keys: torch.Tensor, q_length: int, current_length: torch.Tensor) -> torch.Tensor:
    """bool [B, S, L]: filled slots up to each new token's own. The published one takes all rows to be equally long."""
    slots = torch.arange(valid_keys.shape[-1], device=valid_keys.device)
    return (slots <= current_length[:, :, None]) & valid_keys[:, None, :]


def class_of(parsed: Any) -> Any:
    """The published class with a language head for a parsed configuration."""
    import transformers

    if parsed.model_type == "glm_image":  # not in the tables of the auto classes
        return transformers.GlmImageForConditionalGeneration._from_config
    nested = parsed.get_text_config() is not parsed
    return (transformers.AutoModelForImageTextToText if nested else transformers.AutoModelForCausalLM).from_config


def build(config: dict[str, Any], dtype: torch.dtype, device: str = "meta") -> nn.Module:
    """The published class for `config`, in `dtype` (parameters that transformers keeps in float32 stay so)."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AttentionInterface, AutoConfig

    AttentionInterface.register("glmc", attention)
    others = ("auto_map", "quantization_config", "torch_dtype", "dtype", "components")
    fields = {k: v for k, v in config.items() if k not in others}
    try:
        parsed = AutoConfig.for_model(**fields)
    except (TypeError, ValueError, KeyError, AttributeError, StrictDataclassError) as error:
        raise ConfigError("transformers refuses this configuration", field="config.json", found=str(error)) from error
    experts = {"experts_implementation": "grouped_mm"} if hasattr(parsed.get_text_config(), "n_routed_experts") else {}
    with torch.device(device):
        model = class_of(parsed)(parsed, dtype=dtype, attn_implementation="glmc", **experts)
    follow(model)
    return model.eval()


def computed_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Buffers that no checkpoint holds (RoPE frequencies), made on the CPU by the published module itself."""
    made: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules():
        for name in sorted(module._non_persistent_buffers_set):
            fresh = type(module)(module.config)
            made[f"{path}.{name}"] = getattr(fresh, name).detach()
    return made


def linear_weights(model: nn.Module) -> list[str]:
    """The parameters that quantisation is about: matrices of `nn.Linear`, and experts stacked in three dims.

    Not a matrix that is an embedding too (a tied head), nor a router's, which is a parameter of a class of its own.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    found: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            found += [f"{path}.weight"] if id(module.weight) not in tables else []
        else:
            found += [f"{path}.{name}" for name, own in module.named_parameters(recurse=False)
                      if own.dim() == 3 and not isinstance(module, nn.modules.conv._ConvNd)]
    return found
