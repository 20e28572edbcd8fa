"""What is answered, in OpenAI's form: whole, or as chunks that a client puts together again.

Both APIs say the same in two shapes. A `Reply` makes the whole from the responses, or a chunk from an update; what
differs stands in `ChatReply` and `CompletionReply`. A request may have several prompts, and several answers to each:
answer i of prompt p is choice p·n + i.

**Tokens as text.** Where log-probabilities are asked for, tokens are shown, each by itself. One that is no whole
character is shown by its bytes, `bytes:\\xe2\\x9c`, as two halves of a character must not look the same; a chat's also
has `bytes`, to be put together. A log-probability below −9999, that of a token that cannot come, is −9999: JSON has no
infinity.
"""

import json
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import BaseModel

from llmsys.serving.plan import TokenLogprobs
from llmsys.serving.responses.response import Response, Update
from llmsys.serving.server.token_text import TokenText

LOWEST = -9999.0

Reason = Literal["stop", "length"]


class PromptDetails(BaseModel):
    cached_tokens: int


class Usage(BaseModel):
    """Tokens. An answer's are counted with the one that ended it."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class AssistantMessage(BaseModel):
    role: Literal["assistant"]
    content: str


class ChatChoice(BaseModel):
    index: int
    message: AssistantMessage
    logprobs: dict[str, Any] | None
    finish_reason: Reason


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Reason


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class Model(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[Model]


def usage(responses: Sequence[Response]) -> dict[str, Any]:
    """Of responses that have finished."""
    prompt = sum(len(response.prompt_tokens) for response in responses)
    said = sum(answer.metrics.output_tokens for response in responses for answer in response.answers)
    cached = sum(response.answers[0].metrics.hit_tokens for response in responses)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": said,
        "total_tokens": prompt + said,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


@dataclass
class Reply(ABC):
    """One request's, in either shape."""

    id: str
    model: str
    text: TokenText
    created: int = field(default_factory=lambda: int(time.time()))

    WHOLE: ClassVar[str]
    CHUNK: ClassVar[str]

    def whole(self, responses: Sequence[Response]) -> dict[str, Any]:
        answers = [answer for response in responses for answer in response.answers]
        choices = [
            self._choice(place, answer.text, self._logprobs(place, answer.tokens, answer.logprobs), answer.reason)
            for place, answer in enumerate(answers)
        ]
        return self._frame(self.WHOLE, choices) | {"usage": usage(responses)}

    def opening(self, choice: int) -> dict[str, Any] | None:
        """The first chunk of a choice, where there is one before any text."""
        return None

    def piece(self, choice: int, update: Update) -> dict[str, Any] | None:
        """The chunk of an update; None where there is nothing to say."""
        if not (update.text or update.reason or update.logprobs):
            return None
        logprobs = self._logprobs(choice, update.tokens, update.logprobs)
        return self._frame(self.CHUNK, [self._piece(choice, update.text, logprobs, update.reason)])

    def closing(self, responses: Sequence[Response]) -> dict[str, Any]:
        """The chunk that says how many tokens there were."""
        return self._frame(self.CHUNK, []) | {"usage": usage(responses)}

    def _frame(self, kind: str, choices: list[dict]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    @abstractmethod
    def _choice(self, choice: int, text: str, logprobs: dict | None, reason: str | None) -> dict[str, Any]:
        """A whole one."""

    @abstractmethod
    def _piece(self, choice: int, text: str, logprobs: dict | None, reason: str | None) -> dict[str, Any]:
        """What a chunk adds to one."""

    @abstractmethod
    def _logprobs(
        self, choice: int, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs] | None
    ) -> dict[str, Any] | None:
        """Of the tokens that are added to a choice; None where nobody asked."""


class ChatReply(Reply):
    """A conversation's."""

    WHOLE, CHUNK = "chat.completion", "chat.completion.chunk"

    def opening(self, choice: int) -> dict[str, Any] | None:
        delta = {"role": "assistant", "content": ""}
        what = {"index": choice, "delta": delta, "logprobs": None, "finish_reason": None}
        return self._frame(self.CHUNK, [what])

    def _choice(self, choice, text, logprobs, reason):
        message = {"role": "assistant", "content": text}
        return {"index": choice, "message": message, "logprobs": logprobs, "finish_reason": reason}

    def _piece(self, choice, text, logprobs, reason):
        delta = {"content": text} if text else {}
        return {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, choice, tokens, logprobs):
        if logprobs is None:
            return None
        content = [
            self._entry(token, each.logprob) | {"top_logprobs": [self._entry(*one) for one in each.top]}
            for token, each in zip(tokens, logprobs, strict=True)
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        shown, its_bytes = self.text.shown(token), list(self.text.bytes(token))
        return {"token": shown, "logprob": max(logprob, LOWEST), "bytes": its_bytes}


@dataclass
class CompletionReply(Reply):
    """A prompt's that is continued as it is."""

    offsets: Counter[int] = field(default_factory=Counter, init=False)
    """Characters that a choice has so far, where tokens are shown."""

    WHOLE = CHUNK = "text_completion"

    def _choice(self, choice, text, logprobs, reason):
        return {"index": choice, "text": text, "logprobs": logprobs, "finish_reason": reason}

    _piece = _choice

    def _logprobs(self, choice, tokens, logprobs):
        if logprobs is None:
            return None
        offsets = []
        for token in tokens:
            offsets.append(self.offsets[choice])
            self.offsets[choice] += len(self.text.plain(token))
        likeliest = [{self.text.shown(token): max(p, LOWEST) for token, p in each.top} for each in logprobs]
        return {
            "tokens": [self.text.shown(token) for token in tokens],
            "token_logprobs": [max(each.logprob, LOWEST) for each in logprobs],
            "top_logprobs": likeliest,
            "text_offset": offsets,
        }


def model_list(name: str, since: int) -> dict[str, Any]:
    return {"object": "list", "data": [model(name, since)]}


def model(name: str, since: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": since, "owned_by": "llmsys"}


def as_json(what: Any) -> bytes:
    """In UTF-8, without spaces."""
    return json.dumps(what, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
