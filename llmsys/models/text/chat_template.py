"""A conversation as the text that a model was trained to continue, by the chat template of its checkpoint.

A template is a Jinja program that gets `messages` and prints them with the model's own marks between them. It comes
from strangers, so it runs in Jinja's sandbox, and whatever it raises is an error of the checkpoint. What a template
may use beyond Jinja is what transformers offers, for that is what templates are written against: `tojson` without
escapes for HTML, `raise_exception`, `strftime_now`, `break` and `continue`, and the tags `generation` and
`endgeneration` around the assistant's words, which mark them for training and print nothing. `tools` and `documents`
are none.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from llmsys.models.checkpoints.settings import shown

Messages = Sequence[Mapping[str, Any]]


def render(template: str, messages: Messages, special: Mapping[str, str]) -> str:
    """The text of a conversation, up to where the model answers.

    Parameters
    ----------
    template
        The Jinja program.
    messages
        `{"role": …, "content": …}`, oldest first. A content is text; or a list of parts, `{"type": "text", "text": …}`:
        they go to a template that reads parts as they are, to any other as their text; or None in a message with
        `tool_calls`, and then nothing is printed for it.
    special
        What the template may know as bos_token, eos_token …

    Raises
    ------
    ValueError
        A message is not of that form, or the template refuses the conversation.
    """
    for number, message in enumerate(messages):
        _check(number, message)
    with_text = [dict(message) | {"content": _text_of(message.get("content"))} for message in messages]
    if all(isinstance(message.get("content"), str) for message in messages):
        return _run(template, with_text, special)
    try:
        text = _run(template, [dict(message) for message in messages], special)
    except ValueError:  # it takes text alone
        return _run(template, with_text, special)
    if all(_is_printed(message.get("content"), text) for message in messages):
        return text
    return _run(template, with_text, special)


def _check(number: int, message: Any) -> None:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ValueError(f"a message must be {{'role': 'user', 'content': '…'}}, got {shown(message)}")
    content = message.get("content")
    if isinstance(content, str):
        return
    if content is None:
        if message.get("tool_calls"):
            return
        raise ValueError(
            f"a message must be {{'role': 'user', 'content': '…'}}, and messages[{number}] has no content: only one "
            "with tool_calls may be without"
        )
    if not isinstance(content, Sequence) or not all(_is_text_part(part) for part in content):
        raise ValueError(
            f"the content of a message must be text, or a list of {{'type': 'text', 'text': '…'}}; that of "
            f"messages[{number}] is {shown(content)}"
        )


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _text_of(content: str | Sequence[Mapping[str, str]] | None) -> str:
    if content is None:
        return ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _is_printed(content: str | Sequence[Mapping[str, str]] | None, text: str) -> bool:
    """Whether a template that was given `content` as it is printed its words, and not what Python calls it."""
    if content is None:
        return "None" not in text
    if isinstance(content, str):
        return True
    return str(content) not in text and all(part["text"].strip() in text for part in content)


def _run(template: str, messages: list[dict[str, Any]], special: Mapping[str, str]) -> str:
    given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
    try:
        return _compiled(template).render(**dict(special) | given)
    except Exception as error:  # the template is a program: it may raise anything
        raise ValueError(f"the checkpoint's chat template refuses this conversation: {error}") from error


@lru_cache(maxsize=8)
def _compiled(template: str):
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationMarks(Extension):
        """{% generation %} … {% endgeneration %}: what stands between them, as if they were not there."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)  # what is set between them is not known behind them

    def refuse(reason: str):
        raise TemplateError(reason)

    def as_json(x: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationMarks, loopcontrols]
    )
    environment.filters["tojson"] = as_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment.from_string(template)
