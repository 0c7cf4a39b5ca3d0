"""Text to token ids and back: the checkpoint's own tokenizer, chat template and stop ids, without transformers."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from tokenizers import AddedToken, Tokenizer

from glmc.errors import DamagedArtifact, IncompatibleArtifact, RequestOutOfBounds, UsageError
from glmc.runtime.json_object import json_object

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@lru_cache(maxsize=1)
def _byte_of_character() -> dict[str, int]:
    """GPT-2's table: printable Latin-1 characters stand for their byte, the rest for characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


class TextStream:
    """Turns ids into text as they come; the pieces joined, flush included, equal the decoding of all ids at once.

    A byte-level tokenizer's tokens are bytes, so a UTF-8 decoder that keeps the unfinished character is exact and does
    constant work a token. With any other decoder the last few tokens are decoded again: it may look at neighbours.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._special = {i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
        self._bytewise = type(tokenizer.decoder).__name__ == "ByteLevel"
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._window: list[int] = []  # the ids since the last but one clean cut
        self._cut = 0  # how many of them have been given out

    def push(self, token: int) -> str:
        """The text that token id `token` completes, maybe "". Raises RequestOutOfBounds for what cannot be an id."""
        _check_ids([token])
        if not self._bytewise:
            return self._push_window(token)
        if self._skip and token in self._special:
            return ""
        name = self._tokenizer.id_to_token(token)
        if name is None:  # the model's vocabulary may be padded beyond the tokenizer's; such ids have no text
            return ""
        table = _byte_of_character()
        # An added token with a character outside the table is its own UTF-8, as the tokenizer's decoder has it.
        spelled = [table.get(c, -1) for c in name]
        return self._utf8.decode(name.encode() if -1 in spelled else bytes(spelled))

    def flush(self) -> str:
        """What is still held back, an unfinished character as U+FFFD; the stream is then empty and usable again."""
        if self._bytewise:
            text = self._utf8.decode(b"", final=True)
            self._utf8.reset()
            return text
        given, text = self._decoded(self._window[:self._cut]), self._decoded(self._window)
        self._window, self._cut = [], 0
        return text[len(given):]

    def _decoded(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip)

    def _push_window(self, token: int) -> str:
        self._window.append(token)
        given, text = self._decoded(self._window[:self._cut]), self._decoded(self._window)
        if len(text) <= len(given) or text.endswith("\ufffd"):
            return ""
        del self._window[:self._cut]
        self._cut = len(self._window)
        return text[len(given):]


def _check_ids(ids: Iterable[int]) -> None:
    """Raise RequestOutOfBounds unless every id is a whole number from 0 to 2**32 - 1."""
    for i in ids:
        if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < 1 << 32:
            raise RequestOutOfBounds("this is not a token id", expected="a whole number from 0 to 2**32 - 1", found=i)


class Text:
    """A checkpoint's text side. Made by `Text.open`.

    stop_ids: the ids that end a generation, possibly none. special_tokens: names such as "eos_token" to their text.
    """

    def __init__(self, tokenizer: Tokenizer | None, template: str | None, special_tokens: dict[str, str],
                 stop_ids: frozenset[int]) -> None:
        self._tokenizer, self._template = tokenizer, template
        self.special_tokens, self.stop_ids = special_tokens, stop_ids

    @classmethod
    def open(cls, read: Callable[[str], bytes | None]) -> Text:
        """From `read(name)`, which gives a file's bytes or None when there is none.

        Files asked for: tokenizer.json, tokenizer_config.json, chat_template.jinja, generation_config.json,
        config.json; each may be absent. Raises DamagedArtifact for one that cannot be read.
        """
        config = json_object(read, "tokenizer_config.json")
        tokenizer = None
        if (data := read("tokenizer.json")) is not None:
            try:
                tokenizer = Tokenizer.from_buffer(data)
            except Exception as fault:  # the library raises plain Exception and ValueError
                raise DamagedArtifact("the tokenizer cannot be read", file="tokenizer.json", found=fault) from fault
            # transformers encodes a lone prompt unpadded and in full, whatever the file asks for.
            tokenizer.no_truncation()
            tokenizer.no_padding()
            _add_tokens(tokenizer, config)
        return cls(tokenizer, _template(read, config), _named_special_tokens(config), _stop_ids(read))

    @property
    def decodes(self) -> bool:
        """Whether there is a tokenizer: without one, ids go in and ids come out."""
        return self._tokenizer is not None

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises IncompatibleArtifact when the checkpoint had none."""
        if self._tokenizer is None:
            raise IncompatibleArtifact("the checkpoint had no tokenizer", file="tokenizer.json",
                                       hint="pass token ids instead of text")
        return self._tokenizer

    @property
    def vocabulary(self) -> int:
        """How many ids the tokenizer knows, added tokens included; the model's logits may be wider."""
        return self.tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, prompt: str) -> list[int]:
        """The ids of raw text, with what the tokenizer's post-processor adds. Raises UsageError if it is not text."""
        return self._ids(prompt, add_special_tokens=True)

    def chat(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any] | None = None) -> list[int]:
        """The ids of a conversation under the chat template. See `rendered`."""
        return self.ids(self.rendered(messages, variables))

    def rendered(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any] | None = None) -> str:
        """The text of a conversation under the chat template, up to where the assistant speaks.

        messages, variables: see `chat_template.render`. Raises UsageError when there is no template or it fails.
        """
        from glmc.runtime.chat_template import render  # jinja is slow to import, and raw prompts need none

        if self._template is None:
            raise UsageError("the checkpoint has no chat template", field="messages", hint="use `--raw`")
        return render(self._template, messages, {**self.special_tokens, **(variables or {})})

    def ids(self, text: str) -> list[int]:
        """The ids of text as it stands. Raises UsageError if it is not text."""
        return self._ids(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD. Raises RequestOutOfBounds for a wrong id."""
        _check_ids(ids)
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def stream(self, skip_special_tokens: bool = True) -> TextStream:
        """A new incremental decoder."""
        return TextStream(self.tokenizer, skip_special_tokens)

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        try:
            text.encode()
        except (AttributeError, UnicodeEncodeError) as fault:  # not a str, or lone surrogates from undecodable bytes
            raise UsageError("the prompt is not Unicode text", field="prompt", found=fault) from fault
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids


def _content(token: Any, field: str) -> str:
    """The text of a token that tokenizer_config.json spells as a string or as an object with `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise DamagedArtifact("the token has no text", file="tokenizer_config.json", field=field, found=token)
    return text


def _named_special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token, eos_token, ... to their text, those that tokenizer_config.json gives."""
    return {name: _content(config[name], name) for name in SPECIAL_TOKENS if config.get(name) is not None}


def _add_tokens(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    """Give `tokenizer` the tokens only tokenizer_config.json has, in transformers' order, so that new ids agree."""
    fields = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")

    def added(token: Any, field: str) -> AddedToken:
        if not isinstance(token, dict):
            return AddedToken(_content(token, field), special=True, normalized=False)
        _content(token, field)
        return AddedToken(**{k: v for k, v in token.items() if k in fields})

    table = config.get("added_tokens_decoder") or {}
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if not isinstance(table, dict) or not all(str(i).isdecimal() for i in table) or not isinstance(extra, (list, dict)):
        raise DamagedArtifact("the added tokens cannot be read", file="tokenizer_config.json",
                              field="added_tokens_decoder, extra_special_tokens")
    known = {t.content: t for t in tokenizer.get_added_tokens_decoder().values()}
    listed = [added(table[i], "added_tokens_decoder") for i in sorted(table, key=int)]
    known.update((t.content, t) for t in listed)
    tokenizer.add_tokens(listed)
    named = [known.get(text) or added(config[name], name) for name, text in _named_special_tokens(config).items()]
    values = extra.values() if isinstance(extra, dict) else extra
    tokenizer.add_special_tokens(named + [added(t, "extra_special_tokens") for t in values])


def _template(read: Callable[[str], bytes | None], config: Mapping[str, Any]) -> str | None:
    """The chat template: chat_template.jinja, else tokenizer_config.json's string or its list's "default"."""
    if (data := read("chat_template.jinja")) is not None:
        try:
            return data.decode()
        except UnicodeDecodeError as fault:
            raise DamagedArtifact("the template is not UTF-8", file="chat_template.jinja", found=fault) from fault
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise DamagedArtifact("the chat template is not text", file="tokenizer_config.json", field="chat_template")
    return template


def _stop_ids(read: Callable[[str], bytes | None]) -> frozenset[int]:
    """eos_token_id, one or a list, of generation_config.json, else of config.json, else of its text_config."""
    config = json_object(read, "config.json")
    inner = config.get("text_config")
    places = (("generation_config.json", json_object(read, "generation_config.json")), ("config.json", config),
              ("config.json", inner if isinstance(inner, dict) else {}))
    for file, values in places:
        if (found := values.get("eos_token_id")) is None:
            continue
        ids = found if isinstance(found, list) else [found]
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            raise DamagedArtifact("the stop ids are not token ids", file=file, field="eos_token_id", found=found)
        return frozenset(ids)
    return frozenset()
