"""What comes of a prompt: a response, with an answer or, where `n` is above 1, several."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from llmsys.serving.plan import TokenLogprobs
from llmsys.serving.telemetry.metrics import RequestMetrics


class Update(NamedTuple):
    """What a step added to one answer: the pieces of `text` joined are the answer's."""

    id: str  #  the response's
    index: int  #  of the answer
    text: str = ""
    """May be empty although there are tokens: half a character, or what may become a stop string."""
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None
    reason: str | None = None
    """Why the answer has ended, if it has."""
    error: str | None = None


@dataclass
class Answer:
    """One continuation of a prompt, as far as it has come."""

    index: int
    text: str = ""
    """Without what ended it. "" where the model has no tokenizer."""
    tokens: list[int] = field(default_factory=list, repr=False)
    """Without an end or stop token. With those of a stop string, whose first and last may hold other text as well."""
    logprobs: list[TokenLogprobs] | None = field(default=None, repr=False)
    """One for each of `tokens`, where they were asked for."""
    reason: str | None = None
    """None while it goes on; "stop", "length" (max_tokens or no more room), "abort" or "error"."""
    stopped_by: str | int | None = None
    """The stop string, or the end or stop token."""
    error: str | None = None
    metrics: RequestMetrics | None = field(default=None, repr=False)
    """From its end on."""


@dataclass
class Response:
    """A prompt and its answers, which grow while the engine steps."""

    id: str
    prompt_tokens: tuple[int, ...] = field(repr=False)
    answers: list[Answer]
    listener: Callable[[Update], object] | None = field(default=None, repr=False, compare=False)
    """Called with every update, in the thread of the step."""

    @property
    def finished(self) -> bool:
        """All answers have ended."""
        return all(answer.reason is not None for answer in self.answers)

    @property
    def text(self) -> str:
        """The first answer's."""
        return self.answers[0].text

    @property
    def tokens(self) -> list[int]:
        """The first answer's."""
        return self.answers[0].tokens
