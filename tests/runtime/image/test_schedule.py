"""Times and sigmas are those of diffusers' scheduler, bit by bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from glmc.errors import RequestOutOfBounds
from glmc.runtime.image.schedule import advanced, schedule

SETTINGS = {"train_steps": 1000, "shift": 1.0, "dynamic": True, "base_shift": 0.25, "max_shift": 0.75, "base_tokens": 256,
            "terminal": 0.0, "kind": "exponential"}
NAMES = {"train_steps": "num_train_timesteps", "dynamic": "use_dynamic_shifting", "base_tokens": "base_image_seq_len",
         "terminal": "shift_terminal", "kind": "time_shift_type"}


def published(settings, steps: int, patches: int):
    """diffusers' scheduler, set up as the published pipeline sets it."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    fields = {NAMES.get(name, name): value for name, value in settings.items() if name != "terminal" or value}
    made = FlowMatchEulerDiscreteScheduler(**fields)
    train = settings["train_steps"]
    times = np.linspace(train, 1.0, steps + 1)[:-1].astype(np.int64).astype(np.float32)
    mu = math.sqrt(patches / settings["base_tokens"]) * settings["max_shift"] + settings["base_shift"]
    made.set_timesteps(steps, timesteps=times, sigmas=times / train, mu=mu)
    return made


@pytest.mark.parametrize("changes", [
    {}, {"kind": "linear"}, {"dynamic": False, "shift": 3.0}, {"terminal": 0.1}, {"train_steps": 77, "kind": "linear"},
    {"base_shift": 0.5, "max_shift": 1.15, "base_tokens": 100}, {"dynamic": False, "shift": 0.4, "terminal": 0.02},
])
@pytest.mark.parametrize(("steps", "patches"), [(2, 24), (7, 4096), (50, 4096), (76, 30)])
def test_a_schedule_is_the_published_one(changes, steps, patches):
    settings = {**SETTINGS, **changes}
    times, sigmas = schedule(settings, steps, patches)
    reference = published(settings, steps, patches)
    assert torch.equal(times, reference.timesteps)
    assert torch.equal(sigmas, reference.sigmas)
    latents, noise = torch.randn(2, 1, 4, 6, 8, generator=torch.Generator().manual_seed(steps))
    for number, at in enumerate(reference.timesteps):
        latents, before = advanced(latents, noise, sigmas[number], sigmas[number + 1]), latents
        assert torch.equal(latents, reference.step(noise, at, before, return_dict=False)[0])


@pytest.mark.parametrize(("steps", "terminal"), [(0, 0.0), (1000, 0.0), (True, 0.0), (2.0, 0.0), (1, 0.1), (-3, 0.0)])
def test_steps_that_are_none_are_refused(steps, terminal):
    with pytest.raises(RequestOutOfBounds, match="steps") as fault:
        schedule({**SETTINGS, "terminal": terminal}, steps, 16)
    assert "999" in str(fault.value.expected)
