"""The GLM-Image diffusion transformer: text and image tokens in one attention, LayerNorm on queries and keys, 2-D RoPE.

Its config.json is that of diffusers, which names the class in `_class_name` and no `model_type`.
"""

from __future__ import annotations

from typing import Any

from glmc.errors import ConfigError
from glmc.families.counts import Counts
from glmc.families.fields import Dims, integer

CLASS_NAME = "GlmImageTransformer2DModel"
TINY = {
    "_class_name": CLASS_NAME, "_diffusers_version": "0.37.0.dev0", "attention_head_dim": 12, "condition_dim": 8,
    "in_channels": 4, "num_attention_heads": 3, "num_layers": 3, "out_channels": 4, "patch_size": 2,
    "prior_vq_quantizer_codebook_size": 31, "text_embed_dim": 20, "time_embed_dim": 16,
}
_EPS = 1e-5  # fixed in the published class


def read(config: dict[str, Any]) -> Dims:
    """The sizes of the transformer. Raises ConfigError naming the field."""
    if config.get("_class_name") != CLASS_NAME:
        raise ConfigError("the configuration names another class", file="config.json", field="_class_name",
                          expected=CLASS_NAME, found=config.get("_class_name"))
    heads = integer(config, "num_attention_heads", high=4096, default=64)
    head_dim = integer(config, "attention_head_dim", low=2, high=4096, default=40)
    if head_dim % 4:
        raise ConfigError("the rotary width must be a multiple of 4: half of it turns by height, half by width",
                          file="config.json", field="attention_head_dim", found=head_dim)
    channels = integer(config, "in_channels", high=4096, default=16)
    made = integer(config, "out_channels", high=4096, default=16)
    if made != channels:
        raise ConfigError("the transformer must give as many channels as it takes", file="config.json",
                          field="out_channels", expected=channels, found=made)
    for name, low, default in (("patch_size", 1, 2), ("text_embed_dim", 1, 1472)):
        integer(config, name, low=low, default=default)
    for name, default in (("time_embed_dim", 512), ("condition_dim", 256)):
        if integer(config, name, low=4, default=default) % 2:
            raise ConfigError("sines and cosines fill an even width", file="config.json", field=name, found=config[name])
    hidden = heads * head_dim
    return Dims(
        model_type="glm_image_dit", layers=integer(config, "num_layers", high=1024, default=30), hidden=hidden, heads=heads,
        kv_heads=heads, head_dim=head_dim, rotary=head_dim, intermediate=4 * hidden,
        vocabulary=integer(config, "prior_vq_quantizer_codebook_size", default=16384), max_positions=1 << 24, eps=_EPS,
        tied=False, qk_norm=True)


def promises(dims: Dims) -> dict[str, Counts]:
    """Four modulated layer norms a block, two plain ones of q and k, both turned; the last block's text goes nowhere, and its
    last norm with it. One more modulated norm stands before the last projection."""
    block = {"layer_norm": 6, "modulated_norm": 4, "rope": 2, "attention": 1}
    made = {f"transformer.transformer_blocks.{i}": dict(block) for i in range(dims.layers)}
    made[f"transformer.transformer_blocks.{dims.layers - 1}"] |= {"layer_norm": 5, "modulated_norm": 3}
    return {"transformer": {"layer_norm": 1, "modulated_norm": 1}, **made}
