"""The runtime on a GPU: loading, recorded steps, tokens chosen there, and the comparison with the published model."""

from __future__ import annotations

import models
import pytest
import torch
from fresh import without_a_compiler

import glmc
from glmc import kernels
from glmc.against import against
from glmc.artifact import Artifact
from glmc.errors import NumericError
from glmc.runtime.capture import bucket
from glmc.runtime.sample import Sampler, Sampling
from glmc.runtime.staging import Staging

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
MAX_LEN = 160


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dense and a routed layer, compiled for the GPU that is here: config, published model, checkpoint, artefact, session."""
    major, minor = torch.cuda.get_device_capability()
    config, model, checkpoint = models.published("glm4_moe", num_hidden_layers=2)
    out = tmp_path_factory.mktemp("gpu") / "x.glmc"
    artifact = glmc.compile(checkpoint, out, target=f"cuda:sm_{major}{minor}", max_len=MAX_LEN, max_batch=3)
    return config, model, checkpoint, artifact, glmc.load(out)


@pytest.mark.parametrize("piece", [4096, 4 << 20])
def test_weights_on_the_gpu_are_those_of_the_file(made, piece):
    artifact = Artifact.open(made[3].folder)
    wanted, found = artifact.load_weights(), artifact.load_weights(4, Staging(torch.device("cuda", 0), piece))
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].device.type == "cuda"
        assert torch.equal(found[name].cpu(), tensor), name


def test_logits_are_transformers(made):
    config, model, _, _, session = made
    for ids in models.prompts(config["vocab_size"], 1, 12, 70):
        assert float((session.logits(torch.tensor([ids]))[0] - models.logits(model, ids)).abs().max()) <= 1e-3


def test_rows_of_unequal_lengths_give_what_transformers_gives_each(made):
    config, model, _, _, session = made
    prompts = models.prompts(config["vocab_size"], 3, 17, 40)
    answers = session.generate_batch(prompts, max_new_tokens=24)
    assert [a.token_ids for a in answers] == [models.greedy(model, ids, 24) for ids in prompts]


def test_an_answer_that_crosses_from_one_bucket_to_the_next(made):
    config, model, _, _, session = made
    (ids,) = models.prompts(config["vocab_size"], 58)
    assert session.generate(ids, max_new_tokens=16).token_ids == models.greedy(model, ids, 16)
    assert {(1, 64), (1, 128)} <= set(session.runner.decoder.recorded)


def test_a_recorded_step_is_the_step(made):
    """Bit by bit, and again after other recordings used the memory that they share."""
    config, _, _, _, session = made
    runner, vocabulary = session.runner, config["vocab_size"]
    for row, ids in enumerate(models.prompts(vocabulary, 30, 61, 9)):
        session.extend(row, ids, 0)
    steps = [(torch.tensor(tokens)[:, None], torch.tensor(at)[:, None]) for tokens, at in (
        ([5], [30]), ([7, 8], [30, 61]), ([9], [30]), ([3, 4, 5], [30, 61, 9]), ([5], [30]))]
    for _ in range(2):
        for tokens, at in steps:
            made_so = session.advance(tokens, at).clone()
            with torch.no_grad():
                plain = runner._decode(tokens.cuda(), at.cuda(), bucket(int(at.max()) + 1, MAX_LEN))
            assert torch.equal(made_so, plain), (tokens, at)


def test_a_step_and_a_choice_wait_for_nothing(made):
    """torch tells of every call by which the host would wait, in the middle of decoding."""
    config, _, _, _, session = made
    for row, ids in enumerate(models.prompts(config["vocab_size"], 5, 9)):
        session.extend(row, ids, 0)
    at = torch.tensor([[5], [9]])
    logits = session.advance(torch.tensor([[5], [6]]), at)
    for sampling in (Sampling(), Sampling(0.8, 20, 0.9, 1.2, seed=3)):
        sampler = Sampler(sampling, 2)
        sampler.choose(logits[:, -1]).ids()
        torch.cuda.set_sync_debug_mode("error")
        try:
            choice = sampler.choose(logits[:, -1])
            logits = session.advance(choice.tokens[:, None], at + 1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert all(0 <= token < config["vocab_size"] for token in choice.ids())


@pytest.mark.parametrize("sampling", [
    Sampling(), Sampling(repetition_penalty=1.3), Sampling(1.0, seed=11), Sampling(0.7, top_k=50, seed=12),
    Sampling(1.3, top_p=0.9, seed=13), Sampling(0.9, top_k=64, top_p=0.95, repetition_penalty=1.4, seed=14)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_gpu_chooses_what_the_cpu_would(sampling, dtype):
    logits = (torch.randn(8, 3, 151_552, generator=torch.Generator().manual_seed(3)) * 4).to(dtype)
    cpu, gpu = Sampler(sampling, 3), Sampler(sampling, 3)
    for sampler in (cpu, gpu):
        sampler.observe(1, range(1000))
    for step in logits:
        assert cpu(step).tolist() == gpu.choose(step.cuda()).ids()


@pytest.mark.parametrize("sampling", [Sampling(1.0, seed=1), Sampling(1.0, top_k=7, seed=2), Sampling(0.6, top_p=0.9, seed=3),
                                      Sampling(1.0, top_p=1e-9, seed=4), Sampling(2.0, 300, 0.999, 1.2, seed=5)], ids=str)
@pytest.mark.parametrize("kind", ["ties", "flat", "few", "odd"])
def test_the_gpu_chooses_what_the_cpu_would_from_hard_rows(kind, sampling):
    size = 50_003 if kind == "odd" else 151_552
    logits = torch.randn(4, 3, size, generator=torch.Generator().manual_seed(5)) * (0.0 if kind == "flat" else 4)
    if kind == "ties":
        logits = logits.round()
    if kind == "few":
        logits[..., 40:-9] = -torch.inf
    cpu, gpu = Sampler(sampling, 3), Sampler(sampling, 3)
    for sampler in (cpu, gpu):
        sampler.observe(2, range(500))
    for step in logits:
        assert cpu(step).tolist() == gpu.choose(step.cuda()).ids()


def test_a_choice_repeats_bit_by_bit():
    """Many programs, one order of every sum."""
    logits = (torch.randn(64, 151_552, generator=torch.Generator().manual_seed(6)) * 2).cuda()
    uniforms = torch.rand(64, dtype=torch.float64).cuda()
    run = kernels.load("sample", "triton").run
    first, *others = (run(logits, None, uniforms, temperature=1.0, top_k=9_000, top_p=0.97) for _ in range(20))
    assert all(all(map(torch.equal, first, other)) for other in others)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_gpu_takes_the_lowest_of_equal_maxima_and_refuses_what_is_not_finite(dtype):
    draw = torch.Generator().manual_seed(1)
    logits = torch.zeros(2, 151_552, dtype=dtype)
    for _ in range(20):
        many = torch.randint(0, 151_552, (2, 40), generator=draw)
        tied = logits.scatter(1, many, 5)
        assert Sampler(Sampling(), 2).choose(tied.cuda()).ids() == many.min(1).values.tolist()
    logits[1, 77_777] = float("nan")
    with pytest.raises(NumericError, match="nan") as fault:
        Sampler(Sampling(), 2).choose(logits.cuda()).ids()
    assert fault.value.field == "row 1, step 0"


def test_sampled_answers_repeat(made, recwarn):
    config, _, _, _, session = made
    rows = models.prompts(config["vocab_size"], 4, 11)
    options = {"max_new_tokens": 30, "temperature": 0.9, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.1}
    first, again, other = ([a.token_ids for a in session.generate_batch(rows, seed=seed, **options)] for seed in (5, 5, 6))
    assert first == again != other
    assert not [w for w in recwarn if "compiled now" in str(w.message)]


def test_every_step_agrees_with_the_published_model_on_the_gpu(made):
    answer = against(made[3], made[2])
    assert answer.first is None, answer.notes
    assert {row.module for row in answer.rows} >= {"model.layers.0", "model.layers.1", "lm_head", "logits"}


def test_no_compiler_runs_from_the_artefact_to_its_tokens(made, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert without_a_compiler(made[3].folder, tokens=4) == ""
    assert not list(tmp_path.iterdir()), "Triton compiled something"
