"""Pictures of the tiny pipeline are those of the published one, for the same noise and tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import drawing
import numpy as np
import picturing
import pytest
import ranks
import torch
from PIL import Image
from threaded import together

import glmc
from glmc.artifact import Artifact
from glmc.errors import UsageError
from glmc.runtime.image.picture import Picture
from glmc.runtime.image.pipeline import ImageModel
from glmc.runtime.image.prior import Prior
from glmc.runtime.opened import read_programs
from glmc.runtime.world import World

PROMPT = "a sign \"open\" and 'it' over \u201ca door\u201d"


def drawn(height: int, width: int, images: Sequence[Image.Image] = (), seed: int = 3) -> tuple[Prior, torch.Tensor]:
    """Random tokens for a picture and the images that it is made from, and noise."""
    generator = torch.Generator().manual_seed(seed)
    codes = picturing.TRANSFORMER["prior_vq_quantizer_codebook_size"]

    def grid(rows: int, columns: int) -> torch.Tensor:
        return torch.randint(0, codes, (rows // 16, columns // 16), generator=generator)

    noise = torch.randn(1, 4, height // 8, width // 8, generator=generator)
    return Prior(grid(height, width), tuple(grid(*i.size[::-1]) for i in images), torch.zeros(0, dtype=torch.int64), 0), noise


def images(*sizes: tuple[int, int], seed: int = 9) -> list[Image.Image]:
    """Random images of (height, width)."""
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=generator) for size in sizes]
    return [Image.fromarray(value.numpy()) for value in values]


def published(pipeline, prompt: str, prior: Prior, noise: torch.Tensor, given: Sequence[Image.Image], steps: int,
              guidance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(latents, pixels float32 [H, W, 3]) of the published pipeline."""
    sources = {} if not given else {
        "image": list(given), "prior_token_image_ids": [torch.cat([s.flatten() for s in prior.sources])],
        "source_image_grid_thw": [torch.tensor([[1, *s.shape] for s in prior.sources])]}
    rows, columns = prior.target.shape
    asked = {"prompt": prompt, "height": 16 * rows, "width": 16 * columns, "num_inference_steps": steps,
             "guidance_scale": guidance, "latents": noise, "prior_token_ids": prior.target.reshape(1, -1), **sources}
    return tuple(pipeline(**asked, output_type=kind).images[0] for kind in ("latent", "pil"))


@pytest.mark.parametrize(("size", "given", "steps", "guidance"), [
    ((64, 96), (), 4, 1.5), ((160, 32), (), 1, 1.5), ((32, 32), (), 4, 1.0), ((64, 64), ((64, 32),), 4, 1.5),
    ((96, 64), ((32, 96), (64, 64)), 3, 1.7), ((32, 64), ((96, 32),), 1, 1.0),
])
def test_a_picture_is_the_published_one(size, given, steps, guidance):
    made = picturing.made()
    shown = images(*given)
    prior, noise = drawn(*size, shown)
    latents, image = published(made.published, PROMPT, prior, noise, shown, steps, guidance)
    ours = made.model.generate(PROMPT, *size, shown, steps, guidance, seed=1, prior=prior, noise=noise)
    assert float((ours.latents[0] - latents).abs().max()) <= 1e-4 * float(latents.abs().max())
    apart = (torch.from_numpy(np.asarray(ours.image, "int16")) - torch.from_numpy(np.asarray(image, "int16"))).abs()
    assert ours.image.size == size[::-1]
    assert int(apart.max()) <= 1


@pytest.mark.slow
def test_in_bfloat16_a_picture_is_as_near_to_float32_as_the_published_one(tmp_path):
    folder, pipeline = picturing.published()
    rounded = copy.deepcopy(pipeline).to(torch.bfloat16)
    glmc.compile(folder, tmp_path / "half.glmc", target="fx", max_len=drawing.MAX_LEN, dtype="bfloat16")
    model = glmc.load(tmp_path / "half.glmc")
    for size, given in (((64, 96), ()), ((64, 64), ((64, 32),))):
        shown = images(*given)
        prior, noise = drawn(*size, shown)
        exact = published(pipeline, PROMPT, prior, noise, shown, 4, 1.5)[0]
        theirs = published(rounded, PROMPT, prior, noise.bfloat16(), shown, 4, 1.5)[0]
        ours = model.generate(PROMPT, *size, shown, 4, 1.5, seed=1, prior=prior, noise=noise).latents[0]
        apart = [(found.float() - exact).abs().mean() / exact.abs().max() for found in (ours, theirs)]
        assert float(apart[0]) <= 1.5 * float(apart[1]) < 0.02


SHARED = [(2, False, (64, 96), ()), (4, False, (128, 32), ()), (2, False, (32, 64), ((96, 32), (64, 64))),
          (4, False, (64, 64), ((32, 32),)), (2, True, (32, 64), ()), (2, True, (96, 32), ((32, 64),)), (4, True, (64, 32), ())]


@pytest.mark.parametrize(("count", "cfg", "size", "given"), SHARED)
def test_ranks_make_the_picture_of_one(count, cfg, size, given):
    """They share its rows, or rows and guidance; rank 0's tokens and noise count, whatever the others were given."""
    made = picturing.made()
    shown = images(*given)
    prior, noise = drawn(*size, shown)
    asked = {"images": shown, "steps": 2, "prior": prior, "noise": noise, "seed": 1}
    alone = made.model.generate(PROMPT, *size, **asked)

    def run(world: World) -> Picture:
        others = {} if world.rank == 0 else {"prior": None, "noise": torch.zeros_like(noise), "seed": 5}
        return picturing.shared(made.model, world, cfg).generate(PROMPT, *size, **{**asked, **others})

    found = together(count, run)
    assert not [fault for fault in found if isinstance(fault, Exception)]
    for picture in found:
        assert float((picture.latents - alone.latents).abs().max()) <= 1e-4 * float(alone.latents.abs().max())
        assert picture.seed == alone.seed == 1
    assert [picture.image is None for picture in found] == [rank > 0 for rank in range(count)]
    apart = np.asarray(found[0].image, np.int16) - np.asarray(alone.image, np.int16)
    assert abs(apart).max() <= 1  # of 255, where 1e-6 decides how a value is rounded


@pytest.mark.parametrize(("count", "cfg", "asked", "field"), [
    (2, True, {"height": 32, "guidance": 1.0}, "guidance"), (4, False, {"height": 32}, "height")])
def test_what_ranks_cannot_share_is_refused_by_each(count, cfg, asked, field):
    made = picturing.made()

    def run(world: World) -> None:
        picturing.shared(made.model, world, cfg).generate(PROMPT, width=32, steps=1, **asked)

    assert [fault.field for fault in together(count, run)] == [field] * count


def test_ranks_agree_on_tokens_and_seed_that_one_of_them_drew():
    model, shown = picturing.made().model, [drawing.picture(40, 64)]

    def run(world: World) -> Picture:
        return picturing.shared(model, world).generate(PROMPT, 64, 32, shown, steps=1)

    first, second = together(2, run)
    assert first.seed == second.seed == first.prior.seed
    assert torch.equal(first.prior.target, second.prior.target)
    assert torch.equal(first.latents, second.latents)
    again = model.generate(PROMPT, 64, 32, shown, steps=1, seed=first.seed)
    assert torch.equal(again.prior.target, first.prior.target)
    assert float((again.latents - first.latents).abs().max()) <= 1e-4


def test_other_ranks_load_neither_the_half_that_draws_tokens_nor_the_decoder(monkeypatch):
    artifact, found, real = picturing.made().model.artifact, list[set[str]](), Artifact.load_weights

    def noted(*given, **named):
        weights = real(*given, **named)
        found.append({*weights})
        return weights

    monkeypatch.setattr(Artifact, "load_weights", noted)
    other = ImageModel(artifact, threads=1, ranks=ranks.threads(2)[1])
    parts = read_programs(artifact)
    assert found == [{name for part in ("glyph", "dit", "vae_encode") for name in parts[part].weights()}]
    assert not found[0] & {name for part in ("text", "vision", "vq", "vae_decode") for name in parts[part].weights()}
    with pytest.raises(UsageError, match="only one rank draws tokens"):
        other.tokens(PROMPT, 32, 32, [], 1)


def test_a_condition_image_and_the_prompt_and_the_seed_matter():
    model = picturing.made().model
    shown = images((64, 32), (64, 32))
    prior, noise = drawn(64, 64, shown)
    asked = {"steps": 2, "prior": prior, "seed": 1}

    def latents(prompt: str = PROMPT, given: Sequence[Image.Image] = shown, **more) -> torch.Tensor:
        return model.generate(prompt, 64, 64, given, **{**asked, "noise": noise, **more}).latents

    first = latents()
    assert torch.equal(first, latents())
    for other in (latents("no signs"), latents(given=shown[::-1]), latents(guidance=2.0), latents(noise=None),
                  latents(noise=None, seed=2)):
        assert float((first - other).abs().max()) > 1e-3
    assert torch.equal(latents(noise=None), latents(noise=None))


REFUSED = [
    ({"height": 48}, "height", "multiple of 32"), ({"width": 0}, "width", "multiple of 32"),
    ({"steps": 0}, "steps", "1 to 999"), ({"steps": 1000}, "steps", "1 to 999"),
    ({"guidance": float("nan")}, "guidance", "from 1"),
    ({"guidance": float("inf")}, "guidance", "from 1"), ({"guidance": 0.5}, "guidance", "from 1"),
    ({"seed": -1}, "seed", "2^63"), ({"prompt": ["a"]}, "prompt", None), ({"height": None}, "height", "multiple of 32"),
    ({"noise": torch.zeros(1, 4, 8, 9)}, "noise", "[1, 4, 8, 8]"), ({"images": images((64, 64))}, "prior", "1 of images"),
    ({"prior": Prior(torch.full((4, 4), 31), (), torch.zeros(0), 0)}, "prior", "0 to 30"),
    ({"prior": Prior(torch.zeros(4, 6, dtype=torch.int64), (), torch.zeros(0), 0)}, "prior", "[4, 4]"),
]


@pytest.mark.parametrize(("changes", "field", "expected"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_made_is_refused_before_anything_runs(changes, field, expected, monkeypatch):
    model = picturing.made().model
    monkeypatch.setattr(model, "_run", None)
    monkeypatch.setattr(model, "denoiser", None)
    asked = {"prompt": PROMPT, "height": 64, "width": 64, "steps": 1, "prior": drawn(64, 64)[0], "seed": 0}
    with pytest.raises(UsageError) as fault:
        model.generate(**{**asked, **changes})
    assert fault.value.field == field
    assert expected is None or expected in str(fault.value.expected)


def test_the_size_of_the_first_image_is_taken_where_none_is_given():
    model = picturing.made().model
    assert model.size("", None, None, images((70, 100), (32, 32))) == (64, 96)
    assert model.size("", 32, None, images((70, 100))) == (32, 96)


def test_an_artefact_of_the_native_engine_makes_the_same_picture():
    made, native = picturing.made(), picturing.made("cpu")
    assert {native.model.model.programs[part].engine for part in ("glyph", "dit", "vae_decode", "vae_encode")} == {"fx"}
    shown = images((64, 32))
    prior, noise = drawn(64, 64, shown)
    first, second = (one.model.generate(PROMPT, 64, 64, shown, 2, prior=prior, noise=noise) for one in (made, native))
    assert float((first.latents - second.latents).abs().max()) <= 1e-5


@pytest.mark.parametrize("given", [(), ((64, 48), (40, 64))])
def test_both_stages_from_a_prompt(given):
    made, shown = picturing.made(), [drawing.picture(*size) for size in given]
    picture = made.model.generate(PROMPT, 64, 96, shown, steps=2, seed=5)
    again = made.model.generate(PROMPT, 64, 96, shown, steps=2, seed=5)
    assert torch.equal(picture.latents, again.latents)
    assert torch.equal(picture.prior.target, again.prior.target)
    assert (picture.seed, picture.prior.seed, list(picture.prior.target.shape)) == (5, 5, [4, 6])
    assert set(picture.timings) == {"prior", "glyphs", "condition", "denoise", "decode"}
    sized = [image.resize(tuple(16 * side for side in tokens.shape[::-1]), Image.Resampling.LANCZOS)
             for image, tokens in zip(shown, picture.prior.sources, strict=True)]
    noise = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(5))
    latents, _ = published(made.published, PROMPT, picture.prior, noise, sized, 2, 1.5)
    assert float((picture.latents[0] - latents).abs().max()) <= 1e-4 * float(latents.abs().max())
