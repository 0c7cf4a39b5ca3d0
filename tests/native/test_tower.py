"""Whole vision towers on the native library against their regions' text, and what a step of images must fit."""

from __future__ import annotations

import copy
import itertools
import json
import math

import pytest
import torch

from glmc import families
from glmc.errors import NumericError, RequestOutOfBounds
from glmc.native import keep as keeping
from glmc.native.calls import Refused
from glmc.native.lower import lowered
from glmc.native.tower import STEP, Tower, slots_of
from glmc.passes import prove_native as proving
from glmc.program import Program, Region
from glmc.region import Bound
from glmc.survey import survey
from glmc.target import named

FAMILIES = ("glm4v", "glm46v", "glmga", "glm4v_moe", "glm_ocr")
GRIDS = [(4, 6), (2, 2), (10, 8), (12, 12)]
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16}


@pytest.fixture(scope="module", params=[(name, dtype) for name in FAMILIES for dtype in ("float32", "bfloat16")],
                ids=lambda p: "-".join(p))
def made(request, tmp_path_factory):
    """A family's tiny tower with random weights: program, published weights, kept weights, how they are kept."""
    name, dtype = request.param
    folder = tmp_path_factory.mktemp(name)
    tiny = families.load({"model_type": name}).TINY
    tiny = {**tiny, "text_config": {**tiny["text_config"], "num_hidden_layers": 1}}  # the text is not the matter
    (folder / "config.json").write_text(json.dumps(tiny))
    surveyed = survey(folder, named("cpu"), dtype)
    kept = keeping.forms(surveyed.programs["vision"], None)
    draw = torch.Generator().manual_seed(4)
    plain, packed = {}, {}
    for weight, keep in kept.items():
        drawn = torch.randn(keep.sizes, generator=draw) * (0.3 if len(keep.sizes) == 1 else math.prod(keep.sizes[1:]) ** -0.5)
        drawn = (1 + drawn if "norm" in weight else drawn).to(getattr(torch, keep.dtype))
        stored, shape = keep.stored()
        packed[weight] = torch.empty(shape, dtype=DTYPES[stored])
        keep.pack(drawn, packed[weight]) if keep.packed else packed[weight].copy_(drawn)
        plain[weight] = keep.plain(packed[weight]) if keep.packed else drawn
    return surveyed.programs["vision"], plain, packed, kept


def inputs(program: Program, grids: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    ends = torch.tensor([0, *itertools.accumulate(h * w for h, w in grids)], dtype=torch.int32)
    specs = (one for region in program.regions.values() for one in region.inputs)
    width = next(int(spec.shape[1]) for name, _, spec in specs if name == "pixels")
    pixels = torch.randn(int(ends[-1]), width, generator=torch.Generator().manual_seed(9)).bfloat16().float()
    positions = torch.cat([torch.cartesian_prod(torch.arange(h), torch.arange(w)) for h, w in grids])
    return {"pixels": pixels, "positions": positions, "ends": ends, "grid": torch.tensor([(1, h, w) for h, w in grids])}


def interpreted(program: Program, weights: dict[str, torch.Tensor], given: dict[str, torch.Tensor], wide: bool) -> torch.Tensor:
    """The regions' own text, in float32 if `wide`."""
    values = {f"weight:{n}": t.float() if wide and t.is_floating_point() else t for n, t in weights.items()}
    dtype = next(spec.dtype for r in program.regions.values() for name, _, spec in r.inputs if name == "pixels")
    values |= {f"input:{n}": t.to(torch.float32 if wide else getattr(torch, dtype)) if n == "pixels" else t
               for n, t in given.items()}
    for step in program.steps:
        region = program.regions[step.region]
        region = proving.widened(region) if wide else region
        values |= zip(step.outputs, Bound(region, "cpu")(*[values[n] for n in step.inputs]), strict=True)
    return values[program.logits].float()


@torch.no_grad()
@pytest.mark.parametrize("grids", [GRIDS[:1], GRIDS[1:2], GRIDS], ids=str)
def test_a_tower_gives_what_its_text_gives(made, grids):
    program, plain, packed, kept = made
    given = inputs(program, grids)
    found = Tower(program, packed, kept, 2).run(**given)
    exact, text = (interpreted(program, plain, given, wide) for wide in (True, False))
    assert found.shape == exact.shape
    apart = float((text - exact).abs().max())
    assert float((found - exact).abs().max()) <= 1e-4 * float(exact.abs().max()) + 2 * apart


def test_an_image_gives_the_same_bits_however_it_is_run(made, monkeypatch):
    program, _, packed, kept = made
    given = inputs(program, GRIDS)
    tower = Tower(program, packed, kept, 2)
    whole = tower.run(**given)
    assert torch.equal(Tower(program, packed, kept, 1).run(**given), whole)
    assert torch.equal(tower.run(**given), whole)
    monkeypatch.setattr("glmc.native.tower.STEP", 30)
    assert torch.equal(Tower(program, packed, kept, 2).run(**given), whole)
    begin = 24 + 4
    alone = tower.run(given["pixels"][begin:begin + 80], given["positions"][begin:begin + 80], torch.tensor([0, 80]),
                      given["grid"][2:3])
    assert torch.equal(alone, whole[begin // tower.merge:(begin + 80) // tower.merge])


def test_memory_is_what_the_patches_take(made):
    program, _, packed, kept = made
    tower = Tower(program, packed, kept, 1)
    tower.run(**inputs(program, GRIDS[:1]))
    first = tower._executor
    tower.run(**inputs(program, GRIDS[:1]))
    assert tower._executor is first
    activations = first._arena.numel() * 4 / first.tokens
    assert activations <= tower.patch_bytes < 3 * activations
    assert STEP >= first.tokens


def test_every_distinct_region_is_proved(made):
    program, _, _, kept = made
    proofs = proving.prove_native(program, kept)
    assert [p.region for p in proofs] == list(program.regions)
    assert all(0 < p.native_error <= p.limit and p.note is None for p in proofs)


MISTAKES = {
    "attention's scale": ("attention_packed", lambda c: c.f.__setitem__(0, 0.9)),
    "values for keys": ("attention_packed", lambda c: c.p.__setitem__(1, c.p[2])),
    "one row of positions": ("rope_table", lambda c: c.n.__setitem__(2, 0)),
    "frequencies of the other axis": ("rope_table", lambda c: c.n.__setitem__(3, c.n[3] // 2)),
    "no bias": ("linear", lambda c: c.p.__setitem__(2, None)),
    "no gelu": ("gelu", lambda c: setattr(c, "kernel", "merge_rows")),
    "another side": ("position_table", lambda c: c.n.__setitem__(1, c.n[1] - 1)),
}


@pytest.mark.parametrize("made", [("glm4v", "bfloat16"), ("glm4v", "float32")], indirect=True, ids=str)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_call_is_found(made, mistake, monkeypatch):
    program, _, _, kept = made
    kernel, change = MISTAKES[mistake]

    def changed(region: Region):
        found = lowered(region)
        for call in found.calls:
            if call.kernel == kernel:
                change(call)
                if mistake == "no gelu":
                    call.n.insert(1, 1)
        return found

    monkeypatch.setattr("glmc.native.alone.lowered", changed)
    with pytest.raises(NumericError, match="not the equal of its text"):
        proving.prove_native(program, kept)


def test_channels_stand_behind_places_in_what_is_kept(made):
    _, plain, packed, kept = made
    (name, keep), = ((n, k) for n, k in kept.items() if k.last)
    again = keeping.Keep.from_json(json.loads(json.dumps(keep.to_json())))
    assert again == keep
    assert torch.equal(again.plain(packed[name]), plain[name])
    wrong = keeping.Keep(keep.form, keep.sizes, keep.dtype)
    assert not torch.equal(wrong.plain(packed[name]), plain[name])


@pytest.mark.parametrize("made", [("glm_ocr", "float32")], indirect=True, ids=str)
@pytest.mark.parametrize(("field", "change"), [
    ("pixels", lambda g: g.update(pixels=g["pixels"][:, :-1])),
    ("positions", lambda g: g.update(positions=g["positions"][:-1])),
    ("positions", lambda g: g["positions"].add_(50)),
    ("positions", lambda g: g["positions"].sub_(1)),
    ("ends", lambda g: g["ends"].add_(1)),
    ("ends", lambda g: g.update(ends=g["ends"][:-1])),
    ("grid", lambda g: g.update(grid=g["grid"][:-1])),
    ("image 1", lambda g: g["grid"][1].mul_(torch.tensor([1, 2, 1]))),
    ("image 0", lambda g: g["grid"][:, 0].add_(1)),
    ("image 0", lambda g: g["ends"][1].sub_(2)),
])
def test_what_does_not_fit_is_refused(made, field, change):
    program, _, packed, kept = made
    given = copy.deepcopy(inputs(program, GRIDS))
    change(given)
    with pytest.raises(RequestOutOfBounds) as fault:
        Tower(program, packed, kept, 1).run(**given)
    assert fault.value.field == field


def test_slots_of_an_image_begin_at_a_panel():
    slots, room = slots_of(torch.tensor([0, 3, 35, 36]))
    assert (slots[[0, 2, 3, 34, 35]].tolist(), room) == ([0, 2, 32, 63, 64], 96)


@pytest.mark.parametrize("made", [("glm46v", "bfloat16")], indirect=True, ids=str)
@pytest.mark.parametrize(("old", "new", "reason"), [
    ("[2, 7, 7])", "[2, 7, 6])", "whole patches"),
    ("[0, 3, 1, 2]", "[0, 3, 2, 1]", "permutation"),
    ("downsample_bias, [2, 2])", "downsample_bias, [1, 1])", "do not fit"),
    ("[-1, 2, 2,", "[-1, 4, 1,", "cuts rows"),
    ("attention_packed(unsqueeze, unsqueeze_1,", "attention_packed(unsqueeze, unsqueeze_2,", "made together"),
    ("axial=True", "axial=False", "axes"),
])
def test_what_no_kernel_does_is_refused(made, old, new, reason):
    regions = [region for region in made[0].regions.values() if old in region.text()]
    assert regions
    with pytest.raises(Refused, match=reason):
        lowered(Region.parse(regions[0].text().replace(old, new)))
