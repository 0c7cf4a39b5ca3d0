"""A conversation to one string: a Hugging Face chat template, untrusted, in the sandbox transformers gives it."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.utils
from jinja2.sandbox import ImmutableSandboxedEnvironment

from glmc.errors import UsageError

MAX_PROMPT_CHARACTERS = 1 << 24  # far beyond the longest context of any GLM; stops a template that loops
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")  # the same thing in different APIs; the first leads


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's text for training; for generating, its body is plain text."""

    tags = {"generation"}  # noqa: RUF012 (the base class declares it so)

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class _Namespace(jinja2.utils.Namespace):
    """`namespace()` without names that start with an underscore, which could shadow Python's own attributes."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # no named self, so that namespace(self=1) works as in jinja2
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _Namespace._refuse_private(name)
        jinja2.utils.Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _Namespace._refuse_private(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)

    @staticmethod
    def _refuse_private(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None,
            separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    # jinja2's own filter escapes for HTML, which models were not trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _plain_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    # Instead of the class, whose unbound `dict.update(x)` the sandbox does not see as a mutation of x.
    return dict(*args, **kwargs)


def render(template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
    """The conversation as one string, by a Hugging Face chat template, ending with the assistant's opening, unless `variables`
    hold a false `add_generation_prompt`.

    messages: non-empty, each a mapping of JSON values with a role; values of None are dropped. variables: further names
    the template may read (tools, enable_thinking, ...), JSON values. The template is untrusted: it runs in jinja2's
    immutable sandbox, range() is limited to 100000 and the output to MAX_PROMPT_CHARACTERS. Raises UsageError for
    messages that are not JSON and for whatever goes wrong inside the template.
    """
    if not isinstance(messages, (list, tuple)) or not messages or not all(isinstance(m, Mapping) for m in messages):
        raise UsageError("the messages are not a conversation", field="messages",
                         expected="a non-empty list of {role, content}", found=type(messages).__name__)
    chat = [{k: v for k, v in m.items() if v is not None} for m in messages]
    for place, message in enumerate(chat):
        reasoning = next((message[f] for f in REASONING_FIELDS if f in message), None)
        if reasoning is not None:  # the order of the names shows where a template writes the message as JSON
            chat[place] = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    try:
        # The round trip leaves exact JSON types and a copy: no object with methods reaches the template.
        chat, names = json.loads(json.dumps([chat, dict(variables)]))
    except (TypeError, ValueError, RecursionError) as fault:
        raise UsageError("the messages hold something that is not JSON", field="messages", found=fault) from fault
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                extensions=[_Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now,
                               dict=_plain_dict, namespace=_Namespace)
    pieces, length = [], 0
    try:
        inputs = {"tools": None, "documents": None, "add_generation_prompt": True, **names, "messages": chat}
        for piece in environment.from_string(template).generate(inputs):
            pieces.append(piece)
            length += len(piece)
            if length > MAX_PROMPT_CHARACTERS:
                raise OverflowError(f"it writes more than {MAX_PROMPT_CHARACTERS} characters")
    except Exception as fault:  # template code may raise anything; whatever it is, these messages cannot be rendered
        raise UsageError("the chat template failed on these messages", field="chat_template",
                         found=f"{type(fault).__name__}: {fault}", hint="check the messages, or use `--raw`") from fault
    return "".join(pieces)
