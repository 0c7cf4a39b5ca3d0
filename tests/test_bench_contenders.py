"""Those who decode beside glmc in the benchmark decode the same tokens: else their speed would be of something else."""

from __future__ import annotations

from pathlib import Path

import models
import pytest
import torch

BENCH = Path(__file__).parent.parent / "bench"


@pytest.mark.slow
def test_the_contenders_decode_the_same_tokens(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    from decode_contenders import TransformersLoop, WholeAoti

    config, model, _ = models.published("glm4", num_hidden_layers=1)
    (prompt,) = models.prompts(config["vocab_size"], 7)
    loop, whole = TransformersLoop(model, prompt, 5), WholeAoti(model, prompt, 5, 16, freezing=False)
    assert min(loop.rate(), whole.rate()) > 0
    with torch.no_grad():
        assert whole.tokens == loop.tokens
