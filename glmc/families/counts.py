"""How many sites of each fusion a layer must have: what families add up to their promises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from glmc.families.fields import Dims
from glmc.families.towers import Tower

Counts = dict[str, int]


def total(*parts: Counts) -> Counts:
    """The sum of several counts."""
    return dict(sum((Counter(p) for p in parts), Counter()))


def grouped_attention(qk_norm: bool) -> Counts:
    """Attention with q, k and v projections, turned q and k, and a cache; with a norm of each head or without."""
    return total({"rope": 2, "split_qkv_norm_rope": 1, "attention": 1}, {"rms_norm": 2, "qk_norm_rope": 2} if qk_norm else {})


def latent_attention(indexer: str = "none", turning: bool = True) -> Counts:
    """Attention over latents: their two norms, the turned lanes of q and k, and an indexer of its own ("full") or not.

    Without turned lanes it is that of linear-attention models, whose pooling indexer and keys are made otherwise.
    """
    turned = {"rope": 2, "latent_attention": 1} if turning else {}
    own = {"layer_norm": 1, **({"rope": 2, "lightning_indexer": 1} if turning else {})} if indexer == "full" else {}
    return total({"rms_norm": 2, "attention": 1}, turned, own)


def residual(norms: int, first: bool) -> Counts:
    """`norms` RMS norms of a layer; the two that follow a residual add take it in, but for the very first of the model."""
    return {"rms_norm": norms, "add_rms_norm": 1 if first else 2}


def mlp(routed: bool) -> Counts:
    """A gated MLP, or experts beside a shared one: their gates are sites of their own inside `moe_experts`."""
    return {"silu_mul": 2, "moe_route": 1, "moe_experts": 1} if routed else {"silu_mul": 1}


def decoder(dims: Dims, attention: Counts | Callable[[int], Counts], norms: int = 2) -> dict[str, Counts]:
    """Promises of a text model and its vision tower by scope: "layers.N", "visual.blocks.N", and what lies outside them.

    attention: the counts of every layer's, or a function of the layer's number.
    """
    each = attention if callable(attention) else lambda layer: attention
    made = {f"layers.{i}": total(residual(norms, i == 0), each(i), mlp(bool(dims.experts) and i >= dims.dense_layers))
            for i in range(dims.layers)}
    return {"model": {"rms_norm": 1, "add_rms_norm": 1, "rope_table": 1}, **made, **tower(dims.tower)}


def tower(sizes: Tower | None) -> dict[str, Counts]:
    """Promises of a vision tower; {} without one. Without RoPE it is GLM-Image's: layer norms, and no gate."""
    if sizes is None:
        return {}
    if not sizes.rope:
        return {f"visual.blocks.{i}": {"layer_norm": 2} for i in range(sizes.blocks)}
    block = total({"rms_norm": 2, "rope": 2, "split_qkv_norm_rope": 1, "silu_mul": 1},
                  {"rms_norm": 2, "qk_norm_rope": 2} if sizes.qk_norm else {})
    # A learned table of positions is added before the first block, whose norm takes that add in.
    made = {f"visual.blocks.{i}": total(block, {"add_rms_norm": 2 if i or sizes.table else 1}) for i in range(sizes.blocks)}
    outside = {"rms_norm": 2 if sizes.table else 1, "add_rms_norm": 1, "layer_norm": 1, "silu_mul": 1, "rope_table": 1}
    return {"visual": outside, **made}
