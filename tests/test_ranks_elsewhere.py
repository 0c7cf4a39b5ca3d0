"""Several ranks with the kernels of GPUs and NPUs, on their checking devices, and what their artefacts say."""

from __future__ import annotations

import models
import pytest
import ranks
import torch
from once import alike

import glmc
from glmc.runtime.session import load

DEVICES = {"npu:ascend910b": "npu-emulated"}


@pytest.mark.parametrize("target", DEVICES)
def test_ranks_give_what_one_gives(tmp_path, target):
    config, _, checkpoint = models.published("glm-ranks", num_hidden_layers=1)
    with alike((checkpoint / "config.json").read_text()):
        glmc.compile(checkpoint, tmp_path / "m.glmc", target=target, max_len=32)
    ids = torch.tensor([models.prompts(config["vocab_size"], 5)[0]])
    wanted = load(tmp_path / "m.glmc", device=DEVICES[target]).logits(ids)
    group = [load(tmp_path / "m.glmc", device=DEVICES[target], ranks=rank) for rank in ranks.threads(2)]
    for found in ranks.together(group, lambda model: model.logits(ids)):
        assert float((found - wanted).abs().max()) < 1e-4
