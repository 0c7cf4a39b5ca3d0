"""Texts that a prompt wants written in the picture, as the glyph encoder takes them: bytes, padded as published."""

from __future__ import annotations

import re

import torch

MOST = 2048
"""Tokens of one text, its end included; what is longer is cut, as published."""
PAD, END, UNKNOWN, OFFSET = 0, 1, 2, 3
_QUOTES = (r"'([^']*)'", "\u201c([^\u201c\u201d]*)\u201d", r'"([^"]*)"', "\u300c([^\u300c\u300d]*)\u300d")
_TAKING = {"<pad>": PAD, "</s>": END, "<unk>": UNKNOWN}


def quoted(prompt: str) -> list[str]:
    """What stands in quotes, by kind of quotes and then by place, as published; an apostrophe is a quote too."""
    return [text for quotes in _QUOTES for text in re.findall(quotes, prompt)]


def tokens(text: str, extra: int) -> list[int]:
    """The byte tokenizer's ids with the end. extra: how many special tokens <extra_id_N> it has besides its three.

    Special tokens that a text spells out are taken for such, the three with the white space around them.
    """
    named = {**_TAKING, **{f"<extra_id_{i}>": OFFSET + 256 + i for i in range(extra)}}
    pattern = re.compile(r"\s*(<pad>|</s>|<unk>)\s*|(<extra_id_\d+>)")
    ids: list[int] = []
    at = 0
    for found in pattern.finditer(text):
        name = found[1] or found[2]
        if name in named:
            ids += [OFFSET + byte for byte in text[at:found.start()].encode()] + [named[name]]
            at = found.end()
    ids = [*ids, *(OFFSET + byte for byte in text[at:].encode())][:MOST - 1]
    return ids if ids[-1:] == [END] else [*ids, END]


def batch(prompt: str, extra: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask) int64 [texts, T] of what is quoted, or of one empty text. mask: 1 for a token, 0 behind the text.

    In front of every text stand (texts + 1) % 2 padding tokens, which count as tokens: published so.
    """
    rows = [tokens(text, extra) for text in quoted(prompt) or [""]]
    rows = [[PAD] * ((len(rows) + 1) % 2) + row for row in rows]
    longest = max(map(len, rows))
    ids = [row + [PAD] * (longest - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)
