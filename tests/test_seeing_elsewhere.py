"""Vision families compiled for NPUs and GPUs, checked on the CPU: tower and text give transformers' numbers on images."""

from __future__ import annotations

import tempfile
from pathlib import Path

import models
import pytest
import seeing

import glmc
from glmc.against import against


def compiled(family, target, device):
    config = models.tiny_config(family)
    text, vision = {**config["text_config"], "num_hidden_layers": 2}, {**config["vision_config"], "depth": 1}
    model = models.randomised(config := {**config, "text_config": text, "vision_config": vision})
    checkpoint = models.save(model, config, Path(tempfile.mkdtemp(dir=models.scratch())))
    out = Path(tempfile.mkdtemp(dir=models.scratch())) / "seeing.glmc"
    glmc.compile(checkpoint, out, target=target, dtype="float32", max_len=32)
    return models.Made(config, model, checkpoint, out, glmc.load(out, device=device))


@pytest.mark.parametrize(("family", "target", "device"), [
    ("glm_ocr", "npu:ascend910b", "npu-emulated"),
    pytest.param("glm4v", "cuda:sm_90", "triton-interpreted", marks=pytest.mark.slow),
])
def test_images_and_videos(family, target, device):
    made = compiled(family, target, device)
    for parts in ((2, (4, 6), 3), (1, (2, 2, 4), 2)):
        one = seeing.asked(made, *parts)
        found = made.session.prefill(0, one.prompt, every_row=True)[0]
        assert (found.cpu() - seeing.logits(made, one)).abs().max() < 1e-4
        assert made.session.generate(one.prompt, max_new_tokens=3).token_ids == seeing.greedy(made, one, 3)
    assert against(made.session.artifact, made.checkpoint, device=device).first is None
