"""GLM-5.3-Flash: layers of linear attention, every fourth one latent over chosen pools of slots, four residual streams."""

from __future__ import annotations

from typing import Any

from glmc.errors import ConfigError
from glmc.families import counts, latent, nested
from glmc.families.counts import Counts, latent_attention, total
from glmc.families.fields import Dims, flag, integer, number, routed
from glmc.families.towers import tower

_LINEAR, _CHOSEN = "linear_attention", ("indexed_attention", "deepseek_sparse_attention", "full_attention")
TINY = {
    "model_type": "glm5_next", "architectures": ["Glm5NextForConditionalGeneration"], "tie_word_embeddings": False,
    "text_config": {
        **{k: v for k, v in latent.TINY.items() if k != "rope_parameters"}, "model_type": "glm5_next_text",
        "num_hidden_layers": 4, "qk_rope_head_dim": 0, "head_dim": 0, "index_head_dim": 14, "index_n_heads": 11,
        "index_topk": 6, "index_kpool": 2, "index_kpool_always_select_tail": True,
        "layer_types": [_LINEAR, "indexed_attention", "indexed_attention", _LINEAR],
        "indexer_types": ["full", "full", "shared", "full"], "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "linear_attn_config": {"num_heads": 3, "head_dim": 10, "short_conv_kernel_size": 4, "gate_lower_bound": -5.0},
        "swiglu_limit": 10.0, "hc_mult": 3, "hc_eps": 1e-06, "hc_sinkhorn_iters": 4,
    },
    "vision_config": {**nested.VISION, "model_type": "glm5_next_vision", "out_hidden_size": 40, "attention_bias": True,
                      "projection_intermediate_size": 56, "swiglu_limit": 10.0},
    "image_token_id": 120, "video_token_id": 121, "image_start_token_id": 122, "image_end_token_id": 123,
    "video_start_token_id": 124, "video_end_token_id": 125,
}


def read(config: dict[str, Any]) -> Dims:
    text = nested.text_of(config)
    layers = integer(text, "num_hidden_layers", high=1024)
    chosen = _chosen(text, layers)
    found = latent.indexers(text, layers)
    kinds = tuple(found[i] if chosen[i] else "none" for i in range(layers))
    for i in range(layers):
        if kinds[i] == "shared" and (i == 0 or kinds[i - 1] == "none"):
            raise ConfigError("a shared indexer must follow a layer that chooses", file="config.json",
                              field="text_config.indexer_types", found=f"shared in layer {i}")
    pool, topk = integer(text, "index_kpool", high=4096, default=16), integer(text, "index_topk", high=1 << 20)
    if topk % pool:
        raise ConfigError("whole pools must be chosen", file="config.json", field="text_config.index_topk",
                          expected=f"a multiple of index_kpool = {pool}", found=topk)
    flag(text, "index_kpool_always_select_tail", True)
    _check_streams(text)
    _check_linear(text)
    width = 2 * latent.index_width(text) + 1
    rank = integer(text, "kv_lora_rank", high=1 << 16)
    cached = sum(rank for kind in kinds if kind != "none") + width * kinds.count("full")
    return latent.latent_dims(text, turning=False, tower=tower(config), cached=cached, indexers=kinds,
                              **routed(text, dense_default=3))


def _chosen(text: dict[str, Any], layers: int) -> list[bool]:
    """For each layer whether it chooses slots; the others are linear attention."""
    kinds = text.get("layer_types", [_LINEAR if i % 4 != 3 else _CHOSEN[0] for i in range(layers)])
    if not isinstance(kinds, list) or len(kinds) != layers or any(k not in (_LINEAR, *_CHOSEN) for k in kinds):
        raise ConfigError("the layers' kinds do not fit", file="config.json", field="text_config.layer_types", found=kinds,
                          expected=f"{layers} of {', '.join((_LINEAR, *_CHOSEN))}")
    return [k != _LINEAR for k in kinds]


def _check_streams(text: dict[str, Any]) -> None:
    integer(text, "hc_mult", high=64, default=4)
    integer(text, "hc_sinkhorn_iters", high=256, default=20)
    number(text, "hc_eps", 0.0, 1.0, 1e-6)
    number(text, "swiglu_limit", 0.0, 1e6, 10.0)


def _check_linear(text: dict[str, Any]) -> None:
    """The sizes of linear attention, from `linear_attn_config` or the fields of its own."""
    inner = text.get("linear_attn_config")
    names = {"num_heads": "linear_num_heads", "head_dim": "linear_head_dim", "short_conv_kernel_size": "linear_conv_kernel_dim"}
    if inner is not None and not isinstance(inner, dict):
        raise ConfigError("the field is not an object", file="config.json", field="text_config.linear_attn_config", found=inner)
    for (name, own), default in zip(names.items(), (64, 128, 4), strict=True):
        integer(inner, name, high=4096, default=default) if inner else integer(text, own, high=4096, default=default)


def promises(dims: Dims) -> dict[str, Counts]:
    """Two norms a layer, one before each mixing of streams, one after linear attention or two of latents; no add meets a norm.

    The experts' gates are clamped: each is a `silu_mul`, and no layer has the plain `moe_experts`.
    """
    made = {}
    for i, kind in enumerate(dims.indexers):
        attention = {"rms_norm": 1} if kind == "none" else latent_attention(kind, turning=False)
        routed = dims.experts and i >= dims.dense_layers
        made[f"layers.{i}"] = total({"rms_norm": 4}, attention, {"silu_mul": 2, "moe_route": 1} if routed else {"silu_mul": 1})
    return {"model": {"rms_norm": 1}, **made, **counts.tower(dims.tower)}
