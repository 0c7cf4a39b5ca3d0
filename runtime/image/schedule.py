"""The published scheduler, Euler steps along a flow: which times and sigmas a picture goes through. float32, as published."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from glmc.errors import RequestOutOfBounds


def check_steps(settings: Mapping[str, Any], steps: Any) -> None:
    """Raises RequestOutOfBounds for a number of steps that this schedule does not have."""
    low, high = 2 if settings["terminal"] else 1, settings["train_steps"] - 1
    if isinstance(steps, bool) or not isinstance(steps, int) or not low <= steps <= high:
        raise RequestOutOfBounds("the number of steps is out of range", field="steps", expected=f"{low} to {high}", found=steps)


def schedule(settings: Mapping[str, Any], steps: int, patches: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(times [steps], sigmas [steps + 1], the last of them 0) for a picture of so many patches.

    settings: the fields of glmc.families.pictures.Schedule. Raises RequestOutOfBounds.
    """
    check_steps(settings, steps)
    train = settings["train_steps"]
    times = np.linspace(train, 1.0, steps + 1)[:-1].astype(np.int64).astype(np.float32)
    sigmas = times / train
    if settings["dynamic"]:
        mu = math.sqrt(patches / settings["base_tokens"]) * settings["max_shift"] + settings["base_shift"]
        grown = math.exp(mu) if settings["kind"] == "exponential" else mu
        sigmas = grown / (grown + (1 / sigmas - 1))
    else:
        sigmas = settings["shift"] * sigmas / (1 + (settings["shift"] - 1) * sigmas)
    if settings["terminal"]:
        left = 1 - sigmas
        sigmas = 1 - left / (left[-1] / (1 - settings["terminal"]))
    return torch.from_numpy(times), torch.cat([torch.from_numpy(sigmas).float(), torch.zeros(1)])


def advanced(latents: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """The latents at the following sigma, float32."""
    return latents.float() + (following - sigma) * noise
