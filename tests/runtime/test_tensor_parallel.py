"""Several ranks give what one gives: every family's text model, on both engines, with the weights cut among the ranks."""

from __future__ import annotations

import json
from types import SimpleNamespace

import models
import pytest
import ranks
import seeing
import torch

import glmc
from glmc.errors import UsageError
from glmc.runtime import share, whole
from glmc.runtime.ranks import Alone
from glmc.runtime.session import load

READING = [name for name, (family, _) in models.RANKED.items() if family not in models.SEEING]
SEEING = [name for name, (family, _) in models.RANKED.items() if family in models.SEEING]
NEAR = 1e-4
WIDE = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 128,
        "moe_intermediate_size": 64, "vocab_size": 132, "num_hidden_layers": 2}
"""Sizes whose halves hold whole groups of quantised inputs."""


def loaded(out, size):
    """The artefact on so many ranks."""
    return [load(out, threads=1, ranks=rank) for rank in ranks.threads(size)]


def asked(made):
    return models.prompts(made.config.get("text_config", made.config)["vocab_size"], 11, 5)


def answers(model, prompts):
    """Logits of the first prompt, and what greedy decoding adds to each."""
    return (model.logits(torch.tensor([prompts[0]])),
            [answer.token_ids for answer in model.generate_batch(prompts, max_new_tokens=6)])


@pytest.mark.parametrize("target", ["fx", "cpu"])
@pytest.mark.parametrize("variant", READING)
def test_ranks_give_what_one_gives(variant, target):
    made = models.made(variant, target=target, max_batch=2)
    prompts = asked(made)
    logits, tokens = answers(made.session, prompts)
    for size in (2, 4):
        group = loaded(made.out, size)
        for found, chosen in ranks.together(group, lambda model: answers(model, prompts)):
            assert float((found - logits).abs().max()) < NEAR
            assert chosen == tokens
        cut = made.config["vocab_size"] % size == 0 and not made.config["tie_word_embeddings"]
        runs = 1 + 2 + 5  # the logits, two prompts, and a step for each further token
        assert group[0].ranks.moves == (["all_reduce"] * 4 + ["all_gather"] * cut) * runs


@pytest.mark.parametrize(("variant", "target"), [*((name, "cpu") for name in SEEING), (SEEING[-1], "fx"), *(
    pytest.param(name, "fx", marks=pytest.mark.slow) for name in SEEING[:-1])])  # that engine reads the same text for all
def test_ranks_that_see_give_what_one_gives(variant, target):
    made = models.made(variant, target=target, max_batch=2)
    one = seeing.asked(made, 3, (4, 6), 4).prompt
    wanted = made.session.generate(one, max_new_tokens=5).token_ids
    logits = made.session.prefill(0, one, every_row=True).float()
    for found, tokens in ranks.together(loaded(made.out, 2), lambda model: (
            model.prefill(0, one, every_row=True).float(), model.generate(one, max_new_tokens=5).token_ids)):
        assert float((found - logits).abs().max()) < NEAR
        assert tokens == wanted


@pytest.mark.parametrize("quant", [None, "int8", "int4"])
def test_low_precision_is_cut_without_rounding_again(tmp_path, quant):
    dtype = "float32" if quant else "bfloat16"
    config, _, checkpoint = models.published("glm4_moe", dtype, **WIDE)
    glmc.compile(checkpoint, tmp_path / "m.glmc", quant=quant, max_len=64)
    prompts = models.prompts(config["vocab_size"], 9)
    logits, _ = answers(load(tmp_path / "m.glmc", threads=1), prompts)
    for found, _ in ranks.together(loaded(tmp_path / "m.glmc", 2), lambda model: answers(model, prompts)):
        assert float((found - logits).abs().max()) < 0.02 * float(logits.abs().max())


def test_a_prompt_in_pieces(monkeypatch):
    monkeypatch.setattr(whole, "PIECE", 4)
    made = models.made("glm4_moe-ranks", target="cpu", max_batch=2)
    ids = asked(made)[0]
    for found in ranks.together(loaded(made.out, 2), lambda model: model.logits(torch.tensor([ids]))):
        assert float((found - made.session.logits(torch.tensor([ids]))).abs().max()) < NEAR


def test_each_rank_has_its_share_of_weights_and_of_the_cache():
    made = models.made("glm4_moe-ranks", max_batch=2)
    mine = [sum(w.numel() for w in model.weights.values()) for model in loaded(made.out, 4)]
    all_ = {name: w.numel() for name, w in made.session.weights.items()}
    cut = sum(n for name, n in all_.items() if any(part in name for part in ("_proj", "lm_head")))
    assert mine == [sum(all_.values()) - cut + cut // 4] * 4
    own = share.Share(made.session.artifact, made.session.programs, {}, ranks.threads(4)[1])
    assert share.bytes_of([own.program], own.kept) == 4 * mine[1]
    (group,) = {tuple(t.shape) for t in loaded(made.out, 4)[3].runner.cache.whole.values()}
    assert group[2] == 1


def test_ranks_draw_the_same_without_a_seed():
    made = models.made("glm-ranks", max_batch=2)
    found = ranks.together(loaded(made.out, 2),
                           lambda model: model.generate(asked(made)[0], max_new_tokens=8, temperature=1.5))
    assert found[0].token_ids == found[1].token_ids
    assert found[0].seed == found[1].seed


@pytest.mark.parametrize(("variant", "size", "able"), [("glm-ranks", 3, "1, 2, 4"), ("glm4_moe-odd", 2, "1")])
def test_other_numbers_are_refused_with_those_that_would_do(variant, size, able, monkeypatch):
    made = models.made(variant)
    monkeypatch.setattr("glmc.artifact.Artifact.load_weights", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(UsageError) as fault:
        load(made.out, ranks=ranks.threads(size)[0])
    assert (fault.value.field, fault.value.expected, fault.value.found) == ("ranks", able, size)


def test_why_a_model_is_not_cut_is_told():
    notes = json.loads((models.made("glm4_moe-odd").out / "ledger.json").read_text())["ranks"]
    assert any("several ranks cannot run this model: no number of them divides 1, 5" in note for note in notes)
    notes = json.loads((models.made("glm4-ranks", max_batch=2).out / "ledger.json").read_text())["ranks"]
    assert any("the head is whole on every rank" in note for note in notes)


def test_groups_of_quantised_inputs_are_not_cut(tmp_path):
    sizes = {**WIDE, "intermediate_size": 96, "moe_intermediate_size": 32}
    glmc.compile(models.published("glm4_moe", **sizes)[2], tmp_path / "m.glmc", quant="int4", max_len=64)
    with pytest.raises(UsageError) as fault:
        load(tmp_path / "m.glmc", ranks=ranks.threads(2)[0])
    assert fault.value.expected == "1"
    notes = json.loads((tmp_path / "m.glmc" / "ledger.json").read_text())["ranks"]
    assert any("a cut goes through groups of quantised inputs" in note for note in notes)


def test_the_compiled_engine_runs_on_one_rank():
    with pytest.raises(UsageError, match="aoti runs on one rank"):
        share.open_placement(SimpleNamespace(manifest={"engine": "aoti"}), 2)


def test_one_rank_runs_the_uncut_program():
    made = models.made("glm-ranks", max_batch=2)
    model = load(made.out, threads=1, ranks=Alone())
    assert model.program.mode == "replicated"
    assert model.program == made.session.program


def test_two_processes(tmp_path):
    made = models.made("glm-ranks", target="cpu", max_batch=2)
    ids = asked(made)[0]
    context = torch.multiprocessing.get_context("spawn")
    told = context.Queue()
    processes = [context.Process(target=ranks.process, args=(rank, tmp_path / "meet", made.out, ids, told))
                 for rank in range(2)]
    for process in processes:
        process.start()
    found = [torch.tensor(told.get(timeout=90)) for _ in processes]
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    wanted = made.session.logits(torch.tensor([ids]))
    assert all(float((one - wanted).abs().max()) < NEAR for one in found)
