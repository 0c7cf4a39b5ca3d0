"""The glyph encoder and the autoencoder: traced, they give what the published classes give."""

from __future__ import annotations

import picturing
import pytest
import torch

from glmc import picture_parts
from glmc.errors import ConfigError
from glmc.passes.ahead import PICTURING, launches
from glmc.passes.lower import Bounds
from glmc.survey import survey
from glmc.target import named


@pytest.mark.parametrize("changes", [{}, {"feed_forward_proj": "relu", "num_heads": 2, "d_kv": 5}])
def test_glyphs_are_encoded_as_published(changes):
    config = {**picturing.GLYPHS, **changes}
    encoder = picturing.randomised(picture_parts.build_encoder(config, torch.float32, "cpu"), 1)
    part = picture_parts.glyph_part(picture_parts.build_encoder(config, torch.float32))
    run = picturing.running(part, {f"text_encoder.{n}": p for n, p in encoder.named_parameters()})
    generator = torch.Generator().manual_seed(2)
    for rows, tokens, hidden in ((1, 1, 0), (1, 2, 0), (3, 9, 4), (2, 31, 30)):
        ids, mask = torch.randint(0, 384, (rows, tokens), generator=generator), torch.ones(rows, tokens, dtype=torch.int64)
        mask[0, tokens - hidden:] = 0
        with torch.no_grad():
            expected = encoder(ids, attention_mask=mask).last_hidden_state[mask.bool()]
        assert float((run(ids=ids, mask=mask)[mask.bool()] - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("changes", [
    {}, {"use_quant_conv": True, "use_post_quant_conv": True, "mid_block_add_attention": False}])
def test_pixels_and_latents_are_the_published_ones(changes):
    config = {**picturing.VAE, **changes}
    vae = picturing.randomised(picture_parts.build_vae(config, torch.float32, "cpu"), 3)
    parts = picture_parts.vae_parts(picture_parts.build_vae(config, torch.float32), torch.float32)
    weights = {f"vae.{name}": tensor for name, tensor in vae.named_parameters()}
    decode, encode = (picturing.running(part, weights) for part in parts)
    generator = torch.Generator().manual_seed(4)
    for high, wide in ((2, 4), (7, 3), (1, 12)):
        latents = torch.randn(1, 4, high, wide, generator=generator)
        pixels = torch.rand(1, 3, 8 * high, 8 * wide, generator=generator) * 2 - 1
        with torch.no_grad():
            expected = vae.decode(latents, return_dict=False)[0], vae.encode(pixels).latent_dist.mode()
        for ours, theirs in zip((decode(latents=latents), encode(pixels=pixels)), expected, strict=True):
            assert ours.shape == theirs.shape
            assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())


def test_an_unknown_field_is_refused():
    with pytest.raises(ConfigError, match="diffusers refuses"):
        picture_parts.build_vae({**picturing.VAE, "tiles": 3}, torch.float32)


def test_a_pipeline_in_bfloat16_keeps_its_promises_and_its_gpu_kernels_are_known_ahead():
    surveyed = survey(picturing.published()[0], named("cuda:sm_90"), "bfloat16")
    assert surveyed.ledger.broken == []
    found = {part: {asked.name for asked in launches({part: program}, {}, Bounds(1, 64, 2))}
             for part, program in surveyed.programs.items() if part in PICTURING}
    assert {"modulated_norm_kernel", "layer_norm_kernel", "rope_kernel", "prompt_kernel"} <= found["dit"]
    assert {"rms_norm_kernel", "add_rms_norm_kernel"} <= found["glyph"]
    assert "prompt_kernel" in found["vae_decode"] & found["vae_encode"]
