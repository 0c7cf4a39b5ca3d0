"""What is to be written in a picture: found, made ids of and padded as the published pipeline and tokenizer do."""

from __future__ import annotations

import picturing
import pytest

from glmc.runtime.image import glyphs

TEXTS = ["", "hello", " a  b ", "x </s> y", "</s>", "a </s>  ", "<pad>q", "\u00e9\u4e2d\U0001f600",
         "<extra_id_0>z<extra_id_124> ", "<extra_id_125>", " <extra_id_3> a",
         "a <unk> b<unk>", "\n\t", "a\x00b", "</s></s>", "a" * 3000, "\u4e2d" * 800, "</s >",
         "<extra_id_00>", "b" * 2047 + "</s>"]
PROMPTS = {"nothing": "a cat", "one": 'a sign "OPEN"', "four kinds, in order": "\u300cd\u300d \"c\" \u201cb\u201d 'a'",
           "an apostrophe": "it's Bob's", "empty": "''", "nested": "'a \"b\" c'", "two": "\"x\" and \"longer\"",
           "broken": "\u201copen", "lines": "'a\nb'"}


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_ids_are_those_of_the_byte_tokenizer(text):
    from transformers import ByT5Tokenizer

    expected = ByT5Tokenizer()([text], max_length=glyphs.MOST, truncation=True).input_ids[0]
    assert glyphs.tokens(text, 125) == expected


@pytest.mark.parametrize("name", PROMPTS)
def test_glyphs_are_the_published_ones(name):
    made = picturing.made()
    assert glyphs.quoted(PROMPTS[name]) == made.published.get_glyph_texts(PROMPTS[name])[0]
    expected = made.published._get_glyph_embeds(PROMPTS[name])
    found = made.model.glyphs(PROMPTS[name])
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
