"""The text, the tokenizer and the training rows of the example checkpoint, all from one shipped file.

`data/kjv.txt.xz` holds the King James Bible: a verse a line, a blank line between chapters. Every twentieth chapter is
held out. A row is either plain text from a random verse on, or chat turns in the template the checkpoint ships.
"""

from __future__ import annotations

import lzma
import random
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from glmc.errors import StorageError, UsageError

TEXT = Path(__file__).parent / "data" / "kjv.txt.xz"
VOCAB_SIZE = 2048
END, SYSTEM, USER, ASSISTANT = "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>"
PREFIX = ("[gMASK]", "<sop>")
SPECIAL = (END, *PREFIX, SYSTEM, USER, ASSISTANT, "<|observation|>")
SYSTEM_TEXT = "You continue verses of the King James Bible."
ASKS = ("Continue: ", "Continue this verse: ", "How does this verse go on? ")
IGNORED = -100  # the label that cross entropy skips

# GLM-4's way of splitting text before byte-pair merging.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = """[gMASK]<sop>
{%- for m in messages %}
{%- if m.role not in ['system', 'user', 'assistant', 'observation'] %}
{{- raise_exception('unknown role: ' + m.role) }}
{%- endif %}
{{- '<|' + m.role + '|>\\n' + m.content }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>\\n' }}
{%- endif %}"""


def read_chapters(path: Path = TEXT) -> list[list[str]]:
    """The chapters of `path`, each a list of verses. Raises StorageError when the file is absent or not xz."""
    try:
        text = lzma.decompress(path.read_bytes()).decode("utf-8")
    except (OSError, lzma.LZMAError, UnicodeDecodeError) as fault:
        raise StorageError("the training text cannot be read", file=path, expected="an xz file of UTF-8 text",
                           found=fault, hint="it is shipped in the repository under examples/data") from fault
    return [chapter.splitlines() for chapter in text.strip().split("\n\n")]


def split_held_out(chapters: list[list[str]]) -> tuple[list[list[str]], list[list[str]]]:
    """(training chapters, held-out chapters): every twentieth is held out, beginning with the tenth."""
    held_out = [c for i, c in enumerate(chapters) if i % 20 == 10]
    return [c for i, c in enumerate(chapters) if i % 20 != 10], held_out


def train_tokenizer(chapters: list[list[str]], vocab_size: int = VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of exactly `vocab_size` ids; the special tokens are the last ones, as in GLM."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    bpe.decoder = decoders.ByteLevel()
    learned = vocab_size - len(SPECIAL)
    bpe.train_from_iterator(
        ("\n".join(c) for c in chapters),
        trainers.BpeTrainer(vocab_size=learned, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                            show_progress=False),
    )
    bpe.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    if bpe.get_vocab_size() != vocab_size:
        raise UsageError("the text is too small for this vocabulary", field="vocab_size", expected=vocab_size,
                         found=bpe.get_vocab_size())
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=END, additional_special_tokens=list(SPECIAL[1:]),
        chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=False, padding_side="left", model_max_length=2048,
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """The ids of each text, from the Rust tokenizer at once: several times faster than through the wrapper."""
    return [e.ids for e in tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


@dataclass
class Rows:
    """Draws training rows of `length` + 1 ids from the chapters; the same seed draws the same rows."""

    tokenizer: PreTrainedTokenizerFast
    chapters: list[list[str]]
    length: int
    seed: int
    chat_share: float = 0.15

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.prefix = self.tokenizer.convert_tokens_to_ids(list(PREFIX))
        self.end, self.user, self.assistant = self.tokenizer.convert_tokens_to_ids([END, USER, ASSISTANT])
        self.stream: list[int] = []   # every chapter after the other, each ended by <|endoftext|>
        self.starts: list[int] = []   # where the verses begin in it
        self.verses = [verse for chapter in self.chapters for verse in chapter]
        ids = iter(encode(self.tokenizer, [v + "\n" for v in self.verses]))
        for chapter in self.chapters:
            for _ in chapter:
                self.starts.append(len(self.stream))
                self.stream += next(ids)
            self.stream.append(self.end)

    def draw(self) -> tuple[list[int], list[int]]:
        """(input ids, labels), each of `length`; labels are the next ids, IGNORED where a chat's user speaks."""
        return self._chat() if self.random.random() < self.chat_share else self._text()

    def _text(self) -> tuple[list[int], list[int]]:
        prefix = self.prefix if self.random.random() < 0.5 else []
        begin = self.random.choice(self.starts)
        begin = min(begin, len(self.stream) - self.length - 1)
        ids = prefix + self.stream[begin:begin + self.length + 1 - len(prefix)]
        return ids[:-1], ids[1:]

    def _chat(self) -> tuple[list[int], list[int]]:
        ids: list[int] = []
        said: list[bool] = []   # True where the assistant speaks, or the stop token ends its turn
        while len(ids) <= self.length:
            turn, spoken = self._turns()
            ids, said = ids + turn, said + spoken
        ids, said = ids[:self.length + 1], said[:self.length + 1]
        return ids[:-1], [i if s else IGNORED for i, s in zip(ids[1:], said[1:], strict=True)]

    def _turns(self) -> tuple[list[int], list[bool]]:
        messages = [{"role": "system", "content": SYSTEM_TEXT}] if self.random.random() < 0.25 else []
        for _ in range(self.random.choice((1, 1, 2))):
            words = self.random.choice(self.verses).split()
            cut = self.random.randint(min(3, len(words) - 1), max(len(words) * 2 // 3, min(3, len(words) - 1)))
            ask = self.random.choice(ASKS) + " ".join(words[:cut])
            messages += [{"role": "user", "content": ask}, {"role": "assistant", "content": " ".join(words[cut:])}]
        ids = self.tokenizer.apply_chat_template(messages, return_dict=False)
        ids.append(self.user)
        said, speaking = [], False
        for i in ids:
            said.append(speaking and i != self.assistant)
            speaking = (speaking or i == self.assistant) and i != self.user
        newline_after = [False, *[i == self.assistant for i in ids[:-1]]]   # the template writes it, not the model
        return ids, [s and not n for s, n in zip(said, newline_after, strict=True)]


def held_out_rows(tokenizer: PreTrainedTokenizerFast, chapters: list[list[str]], length: int) -> list[list[int]]:
    """The held-out chapters as one stream, cut into rows of `length` + 1 ids without overlap."""
    end = tokenizer.eos_token_id
    stream = [i for ids in encode(tokenizer, ["\n".join(c) + "\n" for c in chapters]) for i in [*ids, end]]
    return [stream[i:i + length + 1] for i in range(0, len(stream) - length, length)]
