"""Embeddings of a prompt in which the tokens of images and frames take what the vision tower made of them."""

from __future__ import annotations

import torch


def accepts(site) -> str | None:
    return None


def run(x: torch.Tensor, features: torch.Tensor, media: torch.Tensor) -> torch.Tensor:
    """x [B, S, H] and features [M, H] of one dtype, media int64 [B, S] below M -> [B, S, H].

    A token whose `media` is not negative takes that row of `features`; the others keep their embedding.
    """
    return torch.where((media >= 0).unsqueeze(-1), features[media.clamp_min(0)], x)
