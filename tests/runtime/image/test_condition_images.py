"""Condition images: sizes, pixels and tokens beside transformers' own."""

from __future__ import annotations

import json
import math

import drawing
import pytest
import torch

from glmc.errors import DamagedArtifact, GlmcError, IncompatibleArtifact
from glmc.runtime.image.ask import pixels
from glmc.runtime.image.codes import tokens_of
from glmc.runtime.image.resize import condition_grid, smart_resize
from glmc.runtime.image.settings import Settings
from glmc.runtime.image.sizes import Grid
from glmc.runtime.media.settings import Sizing
from glmc.runtime.sample import Sampling

LIMITS = [(3136, 1003520), (512**2, 2048**2), (500, 90000), (10**6, 10**6)]


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("patch", [7, 14, 16])
def test_sizes_are_transformers(patch, limits):
    from transformers.models.glm_image.image_processing_pil_glm_image import smart_resize as theirs

    draw = torch.Generator().manual_seed(patch)
    sizing = Sizing(patch=patch, temporal=1, merge=1, shortest=limits[0], longest=limits[1])
    refused = 0
    for exponents in (3 + 9 * torch.rand(300, 2, generator=draw)).tolist():
        height, width = (int(math.exp2(e)) for e in exponents)
        try:
            expected = theirs(height, width, patch, *limits)
        except ValueError:
            refused += 1
            with pytest.raises(GlmcError):
                smart_resize(height, width, sizing)
            continue
        assert smart_resize(height, width, sizing) == expected, (height, width)
    assert 0 < refused < 250


SIZES = [(60, 80), (33, 61), (24, 24), (91, 40), (150, 201), (640, 300)]


def test_pixels_are_transformers_bit_for_bit():
    made = drawing.made()
    sizing = settings(made).sizing
    images = [drawing.picture(*size, seed=i) for i, size in enumerate(SIZES)]
    expected = made.processor.image_processor(images, return_tensors="pt")
    grids = [Grid(*condition_grid(*size, sizing)[1:]) for size in SIZES]
    assert [[1, *grid] for grid in grids] == expected["image_grid_thw"].tolist()
    assert torch.equal(pixels(sizing, images, grids), expected["pixel_values"])


@pytest.mark.parametrize("target", ["fx", "cpu"])
def test_codes_are_transformers(target):
    made = drawing.made(target)
    images = [drawing.picture(*size, seed=i) for i, size in enumerate(SIZES)]
    given = drawing.inputs(made, "x", 32, 32, images)
    grids = [Grid(*grid[1:]) for grid in given["image_grid_thw"][:-1].tolist()]
    found, expected = tokens_of(made.session, given["pixel_values"], grids), drawing.codes(made, given)
    assert all(map(torch.equal, found, expected))
    assert [tuple(one.shape) for one in found] == grids
    assert len({token for one in found for token in one.flatten().tolist()}) > 5


def settings(made: drawing.Made, **changed: object) -> Settings:
    """As the artefact's files have it, with other values in some: name of a file without .json -> fields."""
    def read(name: str) -> bytes | None:
        data, new = made.session.file(name), changed.get(name.removesuffix(".json"))
        return data if new is None else json.dumps({**json.loads(data or "{}"), **new}).encode()

    return Settings.open(read, made.session.text)


def test_settings_are_the_checkpoints():
    made = drawing.made()
    found = settings(made)
    assert found.sampling == Sampling(0.9, 50, 0.75)
    assert (found.sizing.patch, found.sizing.temporal, found.sizing.merge) == (7, 1, 1)
    assert (found.sizing.shortest, found.sizing.longest) == (576, 6400)
    assert (found.marks.image_id, found.marks.begin_id, found.marks.end_id, found.marks.codes) == (120, 30, 31, 29)
    assert settings(made, generation_config={"top_k": 7, "temperature": 1.5}).sampling == Sampling(1.5, 7, 0.75)


@pytest.mark.parametrize(("changed", "kind", "field"), [
    ({"config": {"image_token_id": 119}}, IncompatibleArtifact, "image_token_id"),
    ({"config": {"image_start_token_id": 29}}, IncompatibleArtifact, "image_start_token_id"),
    ({"config": {"vq_config": {"num_embeddings": 31}}}, DamagedArtifact, "num_embeddings"),
    ({"config": {"vq_config": {}}}, DamagedArtifact, "num_embeddings"),
    ({"tokenizer_config": {"grid_bos_token": None, "extra_special_tokens": []}}, IncompatibleArtifact, "grid_bos_token"),
    ({"generation_config": {"temperature": -1}}, DamagedArtifact, "temperature"),
    ({"processor_config": {"image_processor": {"patch_size": 8}}}, DamagedArtifact, "patch_size"),
    ({"processor_config": {"image_processor": {"do_resize": False}}}, IncompatibleArtifact, "do_resize")])
def test_files_that_do_not_fit_are_refused_by_name(changed, kind, field):
    with pytest.raises(kind) as caught:
        settings(drawing.made(), **changed)
    assert field in str(caught.value.field)
