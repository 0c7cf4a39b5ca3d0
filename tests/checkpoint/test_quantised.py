"""Tiny quantised checkpoints of every format, compiled, beside transformers with the decoded weights."""

import models
import pytest
import quantised
import torch

import glmc
from glmc.runtime.session import Model


def compiled(folder, tmp_path, **options) -> Model:
    glmc.compile(folder, tmp_path / "x.glmc", **{"target": "fx", "dtype": "float32", "max_len": 40, **options})
    return glmc.load(tmp_path / "x.glmc")


@pytest.mark.parametrize("kind", quantised.KINDS)
def test_logits_and_tokens_are_those_of_the_decoded_weights(tmp_path, kind):
    made = quantised.written(kind)
    session = compiled(made.folder, tmp_path)
    ids = models.prompts(made.config["vocab_size"], 9)[0]
    assert (session.logits(torch.tensor([ids]))[0] - models.logits(made.reference, ids)).abs().max() <= 1e-4
    assert session.generate(ids, max_new_tokens=8).token_ids == models.greedy(made.reference, ids, 8)
