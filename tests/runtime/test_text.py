"""Text encodes, renders, decodes and streams as transformers does from the same files."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from glmc.errors import DamagedArtifact, IncompatibleArtifact, RequestOutOfBounds, UsageError
from glmc.runtime.text import Text

TEMPLATE = """[gMASK]<sop>
{%- if tools %}<|system|>{{ tools | tojson(indent=2) }}{% endif %}
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}
    {%- if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{% for m in messages %}
    {% if m.role == 'tool' %}{% continue %}{% endif %}
    {% if m.content is defined and m.content is string %}
<|{{ m.role }}|>{{ bos_token }}{{ m.content }}
    {% else %}
<|{{ m.role }}|>{{ m | tojson }}{{ m.reasoning_content }}{{ ns.last }}
    {% endif %}
    {% if m.role == 'assistant' %}{% generation %}{{ eos_token }}{% endgeneration %}{% endif %}
{% endfor %}
{%- if add_generation_prompt %}<|assistant|>{{ '<think>' if enable_thinking }}{% endif %}
"""
MESSAGES = [
    {"role": "system", "content": "You <b>are</b> & stay brief 你好", "name": None},
    {"role": "user", "content": "Hi 🙂!\n"},
    {"role": "tool", "content": "dropped"},
    {"role": "assistant", "content": [{"type": "text", "text": "é \"<x>\""}], "reasoning": "why"},
    {"role": "user", "content": "bye"},
]


def byte_level():
    """A byte-level BPE of a few hundred tokens with special and ordinary added tokens, and a post-processor."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(["the cat sat on the mat, 你好世界 🙂🙃 naïve façade " * 5], trainer)
    tokenizer.add_tokens(["<think>", AddedToken("<你 好é>", normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[gMASK] <sop> $A", special_tokens=[("[gMASK]", 1), ("<sop>", 2)])
    tokenizer.enable_truncation(8)  # transformers ignores both for one prompt, and so must we
    tokenizer.enable_padding(length=8)
    return tokenizer


CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
    "bos_token": {"__type": "AddedToken", "content": "<bos>", "special": True, "normalized": False},
    "extra_special_tokens": ["<|user|>", "<|observation|>"],
    "added_tokens_decoder": {"0": {"content": "<|endoftext|>", "special": True, "normalized": False, "lstrip": False,
                                   "rstrip": False, "single_word": False}},
    "chat_template": "overruled by the file",
}
FILES = {
    "tokenizer.json": byte_level().to_str().encode(),
    "tokenizer_config.json": json.dumps(CONFIG).encode(),
    "chat_template.jinja": TEMPLATE.encode(),
    "generation_config.json": b'{"eos_token_id": [0, 4]}',
    "config.json": b'{"eos_token_id": 9, "text_config": {"eos_token_id": 8}}',
}
TEXT = Text.open(FILES.get)


def opened(**changes):
    """Text from FILES with some of them replaced; None removes one. Names have `__` for the dot."""
    return Text.open({**FILES, **{k.replace("__", "."): v for k, v in changes.items()}}.get)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes(FILES[name])
    return PreTrainedTokenizerFast.from_pretrained(folder)


PROMPTS = ["", "the cat", " naïve 你好🙂 <think> x", "<|user|>hi<|observation|><bos>", "a" * 50, "<你 好é>\n\n\t"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_encode_and_decode_equal_transformers(theirs, prompt):
    ids = theirs(prompt).input_ids
    assert TEXT.encode(prompt) == ids
    for skip in (False, True):
        assert TEXT.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert TEXT.vocabulary == len(theirs)


@pytest.mark.parametrize("variables", [{}, {"enable_thinking": True}, {"tools": [{"name": "f", "d": "é<"}]}])
def test_chat_equals_apply_chat_template(theirs, variables):
    ids = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False, **variables)
    assert TEXT.chat(MESSAGES, variables) == ids
    assert len(ids) > 50


def streamed(text, ids, skip=True):
    stream = text.stream(skip)
    pieces = [stream.push(i) for i in ids]
    return pieces, stream.flush()


@settings(max_examples=150, deadline=None)
@given(prompt=st.text(alphabet=st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("你好🙂é �"))),
       skip=st.booleans())
def test_a_streamed_text_equals_the_decoded_one(prompt, skip):
    ids = TEXT.encode(prompt)
    pieces, rest = streamed(TEXT, ids, skip)
    assert rest == ""
    assert "".join(pieces) == TEXT.decode(ids, skip)
    if skip and "<" not in prompt:
        assert "".join(pieces) == prompt


@settings(max_examples=150, deadline=None)
@given(ids=st.lists(st.integers(0, TEXT.vocabulary + 3)), skip=st.booleans())
def test_any_ids_stream_as_they_decode(ids, skip):
    pieces, rest = streamed(TEXT, ids, skip)
    assert "".join(pieces) + rest == TEXT.decode(ids, skip)


def test_a_character_comes_whole_and_a_cut_one_at_the_flush():
    stream = TEXT.stream()
    ids = [TEXT.tokenizer.token_to_id(c) for c in pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(
        "🦖")[0][0]]
    assert [stream.push(i) for i in ids] == ["", "", "", "🦖"]
    assert [stream.push(i) for i in ids[:2]] == ["", ""]
    assert (stream.flush(), stream.flush()) == ("\ufffd", "")
    assert "".join(map(stream.push, ids)) == "🦖"


def test_a_stream_of_another_decoder_equals_the_decoded_text():
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), *[(t, -2.0) for t in ["▁", "▁the", "▁cat", "a", "t", "s"]],
                                          *[(f"<0x{b:02X}>", -9.0) for b in range(256)]], 0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    text = Text.open({"tokenizer.json": tokenizer.to_str().encode()}.get)
    ids = text.encode("the cat 你好 🙂 sat")
    pieces, rest = streamed(text, ids)
    assert "".join(pieces) + rest == text.decode(ids) == "the cat 你好 🙂 sat"
    pieces, rest = streamed(text, ids[:-9])
    assert "".join(pieces) + rest == text.decode(ids[:-9])


@pytest.mark.parametrize("template", [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{% set ns = namespace(_x=1) %}",
    "{{ raise_exception.__globals__.os }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{% for i in range(100001) %}{% endfor %}",
    "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "{{ raise_exception('roles must alternate') }}",
    "{{ messages[9].content.x }}",
    "{{ 1 / 0 }}",
    "{% if %}",
    "{% include '/etc/passwd' %}",
    "{{ x.y }}" * 2,
])
def test_a_template_that_escapes_or_fails_is_refused(template):
    text = opened(chat_template__jinja=template.encode())
    with pytest.raises(UsageError) as refusal:
        text.chat([{"role": "user", "content": "hi"}])
    assert refusal.value.field == "chat_template"


@pytest.mark.parametrize("messages", [
    [], "hi", None, ["hi"], [{"role": "user", "content": object()}], [{"role": "user", "content": b"x"}],
])
def test_messages_that_are_no_conversation_are_refused(messages):
    with pytest.raises(UsageError) as refusal:
        TEXT.chat(messages)
    assert refusal.value.field == "messages"


def test_the_messages_are_left_as_they_were():
    messages = json.loads(json.dumps(MESSAGES))
    TEXT.chat(messages)
    assert messages == MESSAGES


def test_without_a_template_the_hint_is_raw():
    text = opened(chat_template__jinja=None, tokenizer_config__json=b"{}")
    with pytest.raises(UsageError) as refusal:
        text.chat(MESSAGES)
    assert "--raw" in refusal.value.hint


def test_a_template_in_the_config_is_a_string_or_the_default_of_a_list():
    for template in ("hi", [{"name": "rag", "template": "no"}, {"name": "default", "template": "hi"}]):
        config = json.dumps({"chat_template": template}).encode()
        text = opened(chat_template__jinja=None, tokenizer_config__json=config)
        assert TEXT.decode(text.chat(MESSAGES)) == "hi"


def test_without_a_tokenizer_only_ids_are_possible():
    text = opened(tokenizer__json=None)
    for call in (lambda: text.encode("x"), lambda: text.chat(MESSAGES), lambda: text.decode([1]), text.stream):
        with pytest.raises(IncompatibleArtifact) as refusal:
            call()
        assert "token ids" in refusal.value.hint
    assert text.stop_ids == {0, 4}


@pytest.mark.parametrize(("changes", "stop"), [
    ({}, {0, 4}), ({"generation_config__json": b"{}"}, {9}), ({"generation_config__json": None}, {9}),
    ({"generation_config__json": None, "config__json": b'{"text_config": {"eos_token_id": 8}}'}, {8}),
    ({"generation_config__json": None, "config__json": None}, set()),
])
def test_stop_ids_come_from_the_first_file_that_has_them(changes, stop):
    assert opened(**changes).stop_ids == stop


@pytest.mark.parametrize("changes", [
    {"tokenizer__json": b"{}"}, {"tokenizer__json": b"\xff"}, {"tokenizer_config__json": b"[]"},
    {"tokenizer_config__json": b"{"}, {"config__json": b'"x"'}, {"generation_config__json": b'{"eos_token_id": "a"}'},
    {"generation_config__json": b'{"eos_token_id": [-1]}'}, {"chat_template__jinja": b"\xff"},
    {"tokenizer_config__json": b'{"eos_token": 5}'}, {"tokenizer_config__json": b'{"added_tokens_decoder": {"x": {}}}'},
    {"tokenizer_config__json": b'{"chat_template": 1}', "chat_template__jinja": None},
    {"tokenizer_config__json": b'{"extra_special_tokens": [3]}'}, {"config__json": b"[" * 100_000},
])
def test_a_broken_file_is_named(changes):
    with pytest.raises(DamagedArtifact) as refusal:
        opened(**changes)
    assert refusal.value.file in {name.replace("__", ".") for name in changes}


@pytest.mark.parametrize("bad", [-1, 1 << 32, 1.5, None, True])
def test_what_is_no_id_is_refused(bad):
    with pytest.raises(RequestOutOfBounds):
        TEXT.decode([1, bad])
    with pytest.raises(RequestOutOfBounds):
        TEXT.stream().push(bad)


@pytest.mark.parametrize("prompt", ["\udcff", None, b"x"])
def test_a_prompt_that_is_not_unicode_is_refused(prompt):
    with pytest.raises(UsageError):
        TEXT.encode(prompt)


def test_neither_torch_nor_transformers_is_imported():
    code = "import sys, glmc.runtime.text; sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
