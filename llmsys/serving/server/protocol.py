"""What may be asked: the bodies of OpenAI's two APIs, as far as the engine can do what they say.

    POST /v1/completions          a prompt, continued as it is: a text, or token ids; or several, in one request
    POST /v1/chat/completions     a conversation, by the checkpoint's chat template

**What is not supported is refused by name.** A client that asks for JSON and gets prose, or asks for a tool and gets a
poem, has been lied to. So any parameter that is not known here is refused, unless its value is what happens anyway
(`NEUTRAL`), as many clients send all that they know. A parameter that is null is as one that is left out.

Beyond OpenAI's there are `top_k`, `min_p`, `stop_token_ids` and `ignore_eos`, under the names that vLLM gave them; with
the openai client, they go into `extra_body`. Defaults are OpenAI's: temperature 1; 16 tokens of a completion, and of a
chat as many as there is room for. At temperature 0 nothing is drawn, so top_p, top_k, min_p and seed have no effect.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from llmsys.serving.sampling.sampling_params import SamplingParams
from llmsys.serving.server.errors import ApiError

NEUTRAL: Mapping[str, list] = {
    "best_of": [1],
    "echo": [False],
    "frequency_penalty": [0],
    "modalities": [["text"]],
    "parallel_tool_calls": [True, False],
    "presence_penalty": [0],
    "reasoning_effort": ["none"],
    "repetition_penalty": [1],
    "response_format": [{"type": "text"}],
    "service_tier": ["auto", "default"],
    "store": [False],
    "suffix": [""],
    "tool_choice": ["none", "auto"],
}
"""Of what is not supported, the values that ask for nothing. Besides these, null, [] and {} of anything."""

Text = Annotated[str, Field(min_length=1, max_length=1000)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
# Of a list the first error is enough: a megabyte of wrong ones must not become a gigabyte of reasons.
Row = Annotated[list[Token], Field(min_length=1, fail_fast=True)]
Texts = Annotated[list[str], Field(min_length=1, fail_fast=True)]
Rows = Annotated[list[Row], Field(min_length=1, fail_fast=True)]


class Strict(BaseModel):
    """No "1" for 1, no true for 1; what is not known is kept, for `refuse_unsupported`, and the document denies it."""

    model_config = ConfigDict(strict=True, extra="allow", json_schema_extra={"additionalProperties": False})

    def refuse_unsupported(self, where: str = "") -> None:
        """ApiError 400 with the name of the first parameter that is not supported and asks for something."""
        for name, value in (self.model_extra or {}).items():
            if value is not None and value not in ([], {}) and value not in NEUTRAL.get(name, ()):
                path = f"{where}{name}"
                raise ApiError(400, f"{path} is not supported here: leave it out", param=path, code="unsupported")


class StreamOptions(Strict):
    include_usage: bool | None = Field(None, description="A last chunk says how many tokens there were.")


class Request(Strict):
    """What both APIs take."""

    model: str | None = Field(None, description="The model's name, as /v1/models says it; it may be left out.")
    stream: bool | None = Field(None, description="Server-sent events, a piece of text at a time.")
    stream_options: StreamOptions | None = None
    n: Count | None = Field(None, description="Answers to each prompt.")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = Field(None, description="0 and -1 are all tokens.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=4, fail_fast=True)] | None = None
    stop_token_ids: Annotated[list[Token], Field(max_length=64, fail_fast=True)] | None = None
    ignore_eos: bool | None = None
    max_tokens: Count | None = None
    user: str | None = Field(None, description="Not used.")

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def check(self, model: str) -> None:
        """ApiError where it asks for what is not supported, or for another model than `model`."""
        self.refuse_unsupported()
        if self.model is not None and self.model != model:
            what = f"there is no model {self.model!r} here: {model!r} is served"
            raise ApiError(404, what, param="model", code="model_not_found")
        if self.stream_options is not None:
            self.stream_options.refuse_unsupported("stream_options.")
            if not self.stream:
                what = "stream_options goes with stream: set stream to true, or leave it out"
                raise ApiError(400, what, param="stream_options")

    def _params(self, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        temperature = 1.0 if self.temperature is None else self.temperature
        drawn = temperature > 0
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=self.top_k if drawn and self.top_k and self.top_k > 0 else None,
            top_p=self.top_p if drawn and self.top_p != 1 else None,
            min_p=self.min_p if drawn and self.min_p else None,
            seed=self.seed if drawn else None,
            stop=self.stop or (),
            stop_token_ids=self.stop_token_ids or (),
            ignore_eos=bool(self.ignore_eos),
            logprobs=logprobs,
            n=self.n or 1,
        )


class CompletionRequest(Request):
    """POST /v1/completions"""

    prompt: str | Row | Texts | Rows
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = Field(None, description="So many likeliest tokens of each.")

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        several = isinstance(self.prompt, list) and not isinstance(self.prompt[0], int)
        return self.prompt if several else [self.prompt]

    def params(self) -> SamplingParams:
        return self._params(16 if self.max_tokens is None else self.max_tokens, self.logprobs)


class TextPart(Strict):
    type: Literal["text"]
    text: str


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"] = Field(description="A developer's is the system's.")
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]


class ChatRequest(Request):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Count | None = Field(None, description="As max_tokens.")
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    def check(self, model: str) -> None:
        super().check(model)
        for number, message in enumerate(self.messages):
            message.refuse_unsupported(f"messages.{number}.")
            for place, part in enumerate(message.content if isinstance(message.content, list) else ()):
                part.refuse_unsupported(f"messages.{number}.content.{place}.")
        if self.top_logprobs is not None and not self.logprobs:
            what = "top_logprobs goes with logprobs: set logprobs to true, or leave it out"
            raise ApiError(400, what, param="top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            what = "max_tokens and max_completion_tokens are one thing, and differ: leave one out"
            raise ApiError(400, what, param="max_completion_tokens")

    @property
    def conversation(self) -> list[dict[str, Any]]:
        """For `Tokenizer.chat`."""
        roles = {"developer": "system"}
        return [
            {"role": roles.get(each.role, each.role), "content": _plain(each.content)} for each in self.messages
        ]  # fmt: skip

    def params(self) -> SamplingParams:
        most = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return self._params(most, (self.top_logprobs or 0) if self.logprobs else None)


def _plain(content: str | list[TextPart]) -> str | list[dict[str, str]]:
    return content if isinstance(content, str) else [{"type": "text", "text": part.text} for part in content]
