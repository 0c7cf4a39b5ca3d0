"""A loaded artefact: requests outside its bounds never reach compiled code; how one asks does not change the answer."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import subprocess
import sys

import models
import pytest
import torch
from safetensors.torch import load_file, save_file

import glmc
from glmc import machine
from glmc.artifact import canonical, manifest_digest
from glmc.errors import DamagedArtifact, IncompatibleArtifact, NumericError, RequestOutOfBounds, UsageError
from glmc.runtime.choice import Choice

SAMPLED = {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.1}


@pytest.fixture(scope="module")
def session():
    return models.made("glm").session


@pytest.fixture
def untouched(session, monkeypatch):
    """The session, whose compiled code fails the test when it is called."""
    monkeypatch.setattr(session.runner.steps, "run", lambda *_: pytest.fail("compiled code ran"))
    return session


OUTSIDE = {
    "empty": [], "too long": [2] * (models.MAX_LEN + 1), "past the vocabulary": [5, 131], "negative": [-1],
    "bool": [True], "float": [2.0], "text": [2, "3"], "huge": [1 << 70], "none": [None],
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_a_prompt_outside_the_bounds_is_refused(untouched, case):
    for ask in (lambda ids: untouched.generate(ids), lambda ids: untouched.generate(ids, stream=True),
                lambda ids: untouched.generate_batch([[5], ids])):
        with pytest.raises(RequestOutOfBounds) as fault:
            ask(OUTSIDE[case])
        assert fault.value.exit == 2
    assert fault.value.field == "prompt[1]"


@pytest.mark.parametrize("ids", [torch.tensor([[131]]), torch.tensor([[-1]]), torch.zeros(1, 0, dtype=torch.int64),
                                 torch.zeros(1, models.MAX_LEN + 1, dtype=torch.int64),
                                 torch.zeros(4, dtype=torch.int64), torch.zeros(1, 2),
                                 torch.zeros(1, 2, dtype=torch.bool)], ids=range(7))
def test_logits_outside_the_bounds_are_refused(untouched, ids):
    with pytest.raises(RequestOutOfBounds):
        untouched.logits(ids)


def test_a_batch_outside_the_bounds_is_refused(untouched):
    for rows in ([], [[5]] * (models.MAX_BATCH + 1)):
        with pytest.raises(RequestOutOfBounds, match="max_batch"):
            untouched.generate_batch(rows)


@pytest.mark.parametrize("count", [0, -1, True, 1.5, None, "3"])
def test_a_senseless_count_is_refused(untouched, count):
    with pytest.raises(UsageError, match="max_new_tokens"):
        untouched.generate([5], max_new_tokens=count)


@pytest.mark.parametrize("option", [{"temperature": -1}, {"top_p": 0}, {"top_k": -1}, {"repetition_penalty": 0},
                                    {"seed": -1}])
def test_a_senseless_option_is_refused(untouched, option):
    with pytest.raises(UsageError, match=next(iter(option))):
        untouched.generate([5], **option)


def test_a_stop_token_ends_the_answer_and_is_not_part_of_it(session, monkeypatch):
    (ids,) = models.prompts(131, 6)
    whole = session.generate(ids, max_new_tokens=12).token_ids
    assert len(whole) == 12
    stop = whole[5]
    monkeypatch.setattr(session.text, "stop_ids", frozenset([stop]))
    answer = session.generate(ids, max_new_tokens=12)
    assert answer.token_ids == whole[: whole.index(stop)]
    assert answer.finish_reason == "stop"
    other = session.generate_batch([ids, models.prompts(131, 9, seed=3)[0]], max_new_tokens=12)
    assert other[0].token_ids == answer.token_ids, "a row that stops does not stop the others"
    assert len(other[1].token_ids) > len(answer.token_ids) or other[1].finish_reason == "stop"


def test_the_stop_tokens_are_the_checkpoints(session):
    assert session.text.stop_ids == {1}


def test_an_answer_that_fills_the_bound_ends_by_length(session, monkeypatch):
    monkeypatch.setattr(session.text, "stop_ids", frozenset())
    (ids,) = models.prompts(131, models.MAX_LEN - 3)
    answer = session.generate(ids, max_new_tokens=50)
    assert (len(answer.token_ids), answer.finish_reason) == (4, "length")
    long, short = session.generate_batch([ids, ids[:4]], max_new_tokens=20)
    assert long.token_ids == answer.token_ids
    assert short.token_ids == session.generate(ids[:4], max_new_tokens=20).token_ids
    assert (len(short.token_ids), short.finish_reason) == (20, "length")


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "seed": 4}])
def test_a_device_that_runs_ahead_has_its_next_step_before_the_host_looks(session, monkeypatch, options):
    (ids,) = models.prompts(131, 6)
    wanted = session.generate(ids, max_new_tokens=6, **options).token_ids
    monkeypatch.setattr(session, "device", dataclasses.replace(session.device, ahead=True))
    done, ids_of, advance = [], Choice.ids, session.runner.advance
    monkeypatch.setattr(Choice, "ids", lambda self: done.append("look") or ids_of(self))
    monkeypatch.setattr(session.runner, "advance", lambda *given: done.append("step") or advance(*given))
    assert session.generate(ids, max_new_tokens=6, **options).token_ids == wanted
    assert done == ["look", "step", *["step", "look"] * 4, "look"], "the first token is not kept waiting, no step is in vain"
    done.clear()
    monkeypatch.setattr(session.text, "stop_ids", frozenset(wanted[3:4]))
    answer = session.generate(ids, max_new_tokens=6, **options)
    assert (answer.token_ids, answer.finish_reason) == (wanted[:wanted.index(wanted[3])], "stop")
    assert done.count("step") <= len(answer.token_ids) + 1


def test_the_pieces_of_a_stream_join_to_the_text(session):
    for seed, ids in enumerate(models.prompts(131, 3, 8, 21)):
        stream = session.generate(ids, max_new_tokens=40, stream=True, temperature=1.0, seed=seed)
        pieces = list(stream)
        assert "".join(pieces) == stream.result.text
        again = session.generate(ids, max_new_tokens=40, temperature=1.0, seed=seed)
        assert (again.token_ids, again.text) == (stream.result.token_ids, stream.result.text)


def test_a_text_prompt_is_its_ids(session):
    raw = session.generate("!?abc", raw=True, max_new_tokens=5)
    assert raw.prompt_tokens == 5
    assert raw.token_ids == session.generate(session.text.encode("!?abc"), max_new_tokens=5).token_ids


def test_a_seed_makes_sampling_repeat_and_rows_do_not_depend_on_each_other(session):
    rows = models.prompts(131, 4, 11, 1)
    alone = [session.generate(ids, max_new_tokens=30, seed=5, **SAMPLED) for ids in rows]
    again = [session.generate(ids, max_new_tokens=30, seed=5, **SAMPLED) for ids in rows]
    batch = session.generate_batch(rows, max_new_tokens=30, seed=5, **SAMPLED)
    other = [session.generate(ids, max_new_tokens=30, seed=6, **SAMPLED) for ids in rows]
    tokens = [[a.token_ids for a in answers] for answers in (alone, again, batch, other)]
    assert tokens[0] == tokens[1] == tokens[2] != tokens[3]
    fresh = session.generate(rows[0], max_new_tokens=30, **SAMPLED)
    assert session.generate(rows[0], max_new_tokens=30, seed=fresh.seed, **SAMPLED).token_ids == fresh.token_ids


def test_a_weight_that_is_not_a_number_is_told(tmp_path):
    _, _, checkpoint = models.published("glm", num_hidden_layers=1)
    source = shutil.copytree(checkpoint, tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"][3, 3] = float("nan")
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    glmc.compile(source, tmp_path / "out.glmc", target="fx", max_len=16)
    with pytest.raises(NumericError, match="nan") as fault:
        glmc.load(tmp_path / "out.glmc").generate([5, 6], max_new_tokens=2)
    assert fault.value.exit == 7


@functools.cache
def native():
    return models.aot().out


@pytest.fixture
def copied(tmp_path):
    return shutil.copytree(native(), tmp_path / "x.glmc")


def resealed(folder, **fields):
    """Change fields of the manifest and make its digest right again."""
    manifest = json.loads((folder / "manifest.json").read_text()) | fields
    manifest["digest"] = manifest_digest(manifest)
    (folder / "manifest.json").write_bytes(canonical(manifest))
    return folder


def test_code_that_was_tampered_with_is_not_loaded(copied):
    library = next((copied / "regions").glob("*.decode.so"))
    data = bytearray(library.read_bytes())
    data[len(data) // 2] ^= 1
    library.write_bytes(data)
    with pytest.raises(DamagedArtifact, match=library.name):
        glmc.load(copied)


def test_a_region_text_that_was_tampered_with_is_not_read(copied):
    text = next((copied / "regions").glob("*.region"))
    text.write_bytes(text.read_bytes().replace(b"rms_norm", b"silu_mul", 1))
    with pytest.raises(DamagedArtifact, match=text.name):
        glmc.load(copied)


def test_another_torch_is_refused(copied):
    with pytest.raises(IncompatibleArtifact, match=r"2\.12\.0") as fault:
        glmc.load(resealed(copied, torch="2.12.0"))
    assert fault.value.exit == 4


@pytest.mark.parametrize(("made_for", "word"), [
    ({"cpu_flags": [*machine.cpu_flags(), "avx9"]}, "avx9"), ({"arch": "s390x"}, "s390x")])
def test_another_cpu_is_refused(copied, made_for, word):
    manifest = json.loads((copied / "manifest.json").read_text())
    with pytest.raises(IncompatibleArtifact, match=word):
        glmc.load(resealed(copied, machine={**manifest["machine"], **made_for}))


def test_a_machine_with_more_than_was_asked_for_is_fine(copied):
    manifest = json.loads((copied / "manifest.json").read_text())
    fewer = {**manifest["machine"], "cpu_flags": manifest["machine"]["cpu_flags"][:1]}
    assert glmc.load(resealed(copied, machine=fewer)).generate([5], max_new_tokens=1).token_ids


SCRIPT = """
import sys, json, glmc
for path in sys.argv[1:]:
    model = glmc.load(path)
    ids = model.generate([5, 9, 7], max_new_tokens=4).token_ids
    rows = model.generate_batch([[5, 9, 7], [8]][:model.max_batch], max_new_tokens=4)
    assert rows[0].token_ids == ids, (rows, ids)
unwanted = ("transformers", "glmc.passes", "glmc.families", "glmc.trace", "glmc.published", "glmc.survey", "glmc.build",
            "torch._inductor.compile_fx")
loaded = sorted(m for m in sys.modules if m.startswith(unwanted))
print(json.dumps([loaded, ids]))
"""


def test_running_needs_neither_transformers_nor_the_compiler():
    made = models.made("glm")
    out = subprocess.run([sys.executable, "-c", SCRIPT, str(native()), str(made.out)], capture_output=True, text=True,
                         check=False, timeout=120)
    assert out.returncode == 0, out.stderr
    loaded, ids = json.loads(out.stdout)
    assert loaded == []
    assert ids == models.greedy(made.reference, [5, 9, 7], 4)
