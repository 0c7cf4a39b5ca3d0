"""A model that runs whole in the native library: long prompts in pieces, batches, threads and builds change nothing."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
from concurrent.futures import ThreadPoolExecutor

import models
import native_calls
import pytest
import torch

import glmc
from glmc.artifact import canonical, manifest_digest
from glmc.errors import DamagedArtifact, IncompatibleArtifact, RequestOutOfBounds, UsageError
from glmc.native.keep import kept_of
from glmc.runtime import whole

LONG = {"max_position_embeddings": 2048, "num_hidden_layers": 2}


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def made(request):
    config, model, checkpoint = models.published("glm4_moe", request.param, **LONG)
    out = checkpoint.parent / f"long-{request.param}.glmc"
    glmc.compile(checkpoint, out, max_len=1200, max_batch=5)
    return models.Made(config, model, checkpoint, out, glmc.load(out))


def test_a_prompt_of_several_pieces_is_that_of_the_published_model(made):
    (ids,) = models.prompts(131, 1150)
    ours, reference = made.session.logits(torch.tensor([ids]))[0], models.logits(made.reference, ids).float()
    assert ours.shape == reference.shape
    gap = (ours - reference).abs().amax(-1)
    if made.config["torch_dtype"] == "float32":
        assert gap.max() < 1e-4
    else:  # near ties send a token to other experts, so not the worst
        assert gap.median() < 0.05 * reference.abs().max()


def test_pieces_of_another_length_give_the_same_bits(made, monkeypatch):
    (ids,) = models.prompts(131, 600)
    expected = made.session.logits(torch.tensor([ids]))[0]
    for piece in (64, 601):
        monkeypatch.setattr(whole, "PIECE", piece)
        assert torch.equal(glmc.load(made.out, threads=1).logits(torch.tensor([ids]))[0], expected)


def test_decoding_gives_the_bits_of_the_prompt(made):
    (ids,) = models.prompts(131, 530)
    expected = made.session.logits(torch.tensor([ids]))[0]
    made.session.extend(3, ids[:500], 0)
    for at in range(500, 530):
        assert torch.equal(made.session.extend(3, [ids[at]], at)[0, 0], expected[at])


def test_a_row_decodes_to_the_same_bits_alone_and_in_a_batch(made):
    prompts = models.prompts(131, 300, 7, 520, 1, 40)
    for row, ids in enumerate(prompts):
        made.session.extend(row, ids, 0)
    tokens, positions = torch.tensor([[9], [8], [7], [6], [5]]), torch.tensor([[len(p)] for p in prompts])
    batch = made.session.advance(tokens, positions)
    for row in range(5):
        assert torch.equal(made.session.extend(row, tokens[row].tolist(), int(positions[row]))[0], batch[row])


@pytest.mark.parametrize("variant", native_calls.VARIANTS)
def test_every_build_gives_nearly_the_same(made, variant, monkeypatch):
    (ids,) = models.prompts(131, 70)
    expected = made.session.logits(torch.tensor([ids]))[0]
    monkeypatch.setenv("GLMC_ISA", variant)
    found = glmc.load(made.out).logits(torch.tensor([ids]))[0]
    assert (found - expected).abs().median() < (1e-5 if made.config["torch_dtype"] == "float32" else 0.02)


@pytest.mark.parametrize("threads", [0, -1, 1 << 20, True, 1.5])
def test_a_senseless_number_of_threads_is_refused(made, threads):
    with pytest.raises(UsageError, match="threads"):
        glmc.load(made.out, threads=threads)


def test_tokens_outside_the_cache_never_reach_the_library(made):
    with pytest.raises(RequestOutOfBounds, match="cache"):
        made.session.extend(0, [5, 6], 1199)
    with pytest.raises(RequestOutOfBounds, match="cache"):
        made.session.advance(torch.tensor([[5]]), torch.tensor([[1200]]))
    with pytest.raises(RequestOutOfBounds, match="cache"):
        made.session.advance(torch.tensor([[5]]), torch.tensor([[-1]]))
    with pytest.raises(RequestOutOfBounds, match="cache"):
        made.session.extend(5, [6], 0)
    with pytest.raises(RequestOutOfBounds, match="cache"):
        made.session.advance(torch.full((6, 1), 5), torch.zeros(6, 1, dtype=torch.int64))
    for wrong in (-1, 131):
        with pytest.raises(RequestOutOfBounds, match="vocabulary"):
            made.session.extend(0, [5, wrong], 0)
        with pytest.raises(RequestOutOfBounds, match="vocabulary"):
            made.session.advance(torch.tensor([[wrong]]), torch.tensor([[3]]))


def test_a_profile_has_the_seconds_of_every_call(made):
    seconds = made.session.runner.executor.profile()
    made.session.extend(0, [5, 6, 7], 0)
    assert len(seconds) == len(made.session.runner.executor.items)
    assert (seconds >= 0).all()
    assert 0 < seconds.sum() < 5


def test_a_forked_process_is_told(made):
    """It has none of the library's threads and would wait for them."""
    def ask(answer):
        try:
            made.session.extend(0, [5], 0)
        except UsageError as fault:
            answer.put(fault.field)

    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()
    child = context.Process(target=ask, args=(answer,))
    child.start()
    child.join(20)
    alive = child.is_alive()
    child.kill()
    assert not alive
    assert answer.get() == "process"


def test_threads_that_ask_at_once_take_turns(made):
    (ids,) = models.prompts(131, 200)
    expected = [made.session.extend(row, ids[row:], 0) for row in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: made.session.extend(row, ids[row:], 0), range(4)))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_artefact_holds_no_native_code(made):
    artifact = made.session.artifact
    assert not [name for name in artifact.files if name.endswith(".so")]
    assert artifact.manifest["machine"] == {}
    forms = {k.form for k in kept_of(artifact.json("program.json")).values()}
    assert forms == {"rows", "vector", "F32"} | ({"BF16"} if made.config["torch_dtype"] == "bfloat16" else set())


@pytest.mark.parametrize("change", [
    lambda native: native.pop("weights"), lambda native: native["weights"].pop("lm_head.weight"),
    lambda native: native["weights"]["lm_head.weight"].update(form="Q2"),
    lambda native: native["weights"]["lm_head.weight"].update(sizes=[131, 47]),
    lambda native: native["weights"]["lm_head.weight"].update(halves=True),
    lambda native: native["weights"]["model.norm.weight"].update(sizes=[47])])
def test_a_program_whose_forms_do_not_fit_is_refused(made, tmp_path, change):
    copied = tmp_path / "changed.glmc"
    shutil.copytree(made.out, copied)
    program = json.loads((copied / "program.json").read_text())
    change(program["kept"])
    written = canonical(program)
    (copied / "program.json").chmod(0o644)
    (copied / "program.json").write_bytes(written)
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["files"]["program.json"] = {"bytes": len(written), "sha256": hashlib.sha256(written).hexdigest()}
    manifest["digest"] = manifest_digest(manifest)
    (copied / "manifest.json").chmod(0o644)
    (copied / "manifest.json").write_bytes(canonical(manifest))
    with pytest.raises((DamagedArtifact, IncompatibleArtifact)):
        glmc.load(copied)
