"""What may be asked, without a server: what becomes of a body, and what is refused by which name."""

import pytest

pytest.importorskip("fastapi", reason="the serving extra is not installed")

from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llmsys.serving import SamplingParams
from llmsys.serving.server.errors import ApiError, not_valid, refused
from llmsys.serving.server.protocol import NEUTRAL, ChatRequest, CompletionRequest

USER = {"role": "user", "content": "Hello"}


def chat(**more) -> ChatRequest:
    return ChatRequest.model_validate({"messages": [USER]} | more)


def completion(**more) -> CompletionRequest:
    return CompletionRequest.model_validate({"prompt": "a"} | more)


def error_of(make, **body) -> ApiError:
    """What the client is told, whether the body is not valid or asks for what is not there."""
    try:
        make(**body).check("tiny")
    except ValidationError as error:
        return not_valid(error.errors())
    except ApiError as error:
        return error
    raise AssertionError(f"{body} was accepted")


def test_defaults_are_openais():
    assert completion().params() == SamplingParams(max_tokens=16, temperature=1)
    assert chat().params() == SamplingParams(max_tokens=None, temperature=1)


def test_every_parameter_goes_where_it_belongs():
    asked = dict(
        temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, seed=7, stop=["x", "y"], stop_token_ids=[3], ignore_eos=True,
        n=2, max_tokens=9,
    )  # fmt: skip
    expected = SamplingParams(**asked)
    assert completion(**asked).params() == expected and chat(**asked).params() == expected
    assert completion(logprobs=3).params().logprobs == 3 and completion(logprobs=0).params().logprobs == 0
    assert chat(logprobs=True, top_logprobs=4).params().logprobs == 4
    assert chat(logprobs=True).params().logprobs == 0 and chat(logprobs=False).params().logprobs is None
    assert chat(max_completion_tokens=5).params().max_tokens == 5
    assert completion(stop="x").params().stop == ("x",)


@given(
    temperature=st.floats(0, 2) | st.none(), top_p=st.floats(0, 1, exclude_min=True) | st.none(),
    top_k=st.integers(-1, 2**31 - 1) | st.none(), min_p=st.floats(0, 1) | st.none(),
    seed=st.integers(-(2**63), 2**64 - 1) | st.none(), n=st.integers(1, 16) | st.none(),
)  # fmt: skip
def test_what_is_valid_is_what_a_request_can_have(**asked):
    """No combination of allowed values is one that the sampler refuses."""
    for body in (chat(**asked), completion(**asked)):
        body.check("tiny")
        params = body.params()
        assert params.n == (asked["n"] or 1)
        assert params.temperature == (1 if asked["temperature"] is None else asked["temperature"])


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (dict(temperature=-0.1), "temperature"),
        (dict(temperature=2.1), "temperature"),
        (dict(temperature=float("nan")), "temperature"),
        (dict(temperature=float("inf")), "temperature"),
        (dict(temperature="1"), "temperature"),
        (dict(temperature=True), "temperature"),
        (dict(top_p=0), "top_p"),
        (dict(top_p=1.01), "top_p"),
        (dict(top_k=-2), "top_k"),
        (dict(min_p=1.5), "min_p"),
        (dict(seed=2**64), "seed"),
        (dict(seed=1.5), "seed"),
        (dict(n=0), "n"),
        (dict(n=True), "n"),
        (dict(n=10**400), "n"),
        (dict(max_tokens=0), "max_tokens"),
        (dict(max_tokens=-1), "max_tokens"),
        (dict(stop=""), "stop"),
        (dict(stop=["a"] * 5), "stop"),
        (dict(stop=["x" * 1001]), "stop"),
        (dict(stop=[1]), "stop"),
        (dict(stop_token_ids=[-1]), "stop_token_ids.0"),
        (dict(stop_token_ids=[1] * 65), "stop_token_ids"),
        (dict(stream="yes"), "stream"),
        (dict(stream_options={"include_usage": True}), "stream_options"),
        (dict(stream=True, stream_options={"include_obfuscation": True}), "stream_options.include_obfuscation"),
        (dict(model="other"), "model"),
        (dict(model=1), "model"),
        (dict(user=1), "user"),
    ],
)
def test_what_is_refused_of_both(body, param):
    for make in (chat, completion):
        error = error_of(make, **body)
        assert error.status in (400, 404) and error.param == param, error.message
        assert len(error.message) < 200
        assert error.message and "Traceback" not in error.message


@pytest.mark.parametrize(
    "prompt", [1, None, [], [[]], [1, "a"], ["a", 1], [[1], "a"], [[1], []], [-1], [2**31], [1.5], {}, True]
)
def test_prompts_that_are_none(prompt):
    error = error_of(completion, prompt=prompt)
    assert error.param == "prompt" and "a text, a list of texts, a row of token ids" in error.message


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), ([1, 2], [[1, 2]]), (["a", ""], ["a", ""]), ([[1], [2, 3]], [[1], [2, 3]]), ("", [""])],
)
def test_prompts_that_are_some(prompt, prompts):
    assert completion(prompt=prompt).prompts == prompts


def test_a_prompt_and_messages_are_needed():
    for body, name in ((CompletionRequest, "prompt"), (ChatRequest, "messages")):
        with pytest.raises(ValidationError) as error:
            body.model_validate({})
        assert not_valid(error.value.errors()).param == name


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "a"}, "messages.0.role"),
        ({"role": "user"}, "messages.0.content"),
        ({"role": "assistant", "content": None}, "messages.0.content"),
        ({"content": "a"}, "messages.0.role"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "messages.0.content"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages.0.content"),
        ({"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"x": 1}}]},
         "messages.0.content.0.cache_control"),
        ({"role": "user", "content": "a", "name": "b"}, "messages.0.name"),
        ({"role": "assistant", "content": "a", "tool_calls": [{}]}, "messages.0.tool_calls"),
        ("hello", "messages.0"),
    ],
)  # fmt: skip
def test_messages_that_are_refused(message, param):
    assert error_of(chat, messages=[message]).param == param


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function"}]), ("tool_choice", "required"), ("response_format", {"type": "json_object"}),
        ("functions", [{}]), ("logit_bias", {"5": 1}), ("frequency_penalty", 0.5), ("presence_penalty", -1),
        ("best_of", 2), ("echo", True), ("suffix", "b"), ("audio", {"a": 1}), ("modalities", ["audio"]),
        ("store", True), ("metadata", {"a": "b"}), ("reasoning_effort", "high"), ("max_token", 3), ("", 1),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(name, value):
    for make in (chat, completion):
        error = error_of(make, **{name: value})
        assert (error.status, error.param, error.code) == (400, name, "unsupported") and name in error.message


@pytest.mark.parametrize("name", [*NEUTRAL, "tools", "logit_bias", "whatever"])
def test_what_asks_for_nothing_is_no_error(name):
    for value in [None, [], {}, *NEUTRAL.get(name, ())]:
        for make in (chat, completion):
            make(**{name: value}).check("tiny")


def test_of_a_chat_alone():
    assert error_of(chat, messages=[]).param == "messages"
    assert error_of(chat, top_logprobs=2).param == "top_logprobs"
    assert error_of(chat, logprobs=True, top_logprobs=21).param == "top_logprobs"
    assert error_of(chat, logprobs=2).param == "logprobs" and error_of(completion, logprobs=True).param == "logprobs"
    assert error_of(chat, max_tokens=3, max_completion_tokens=4).param == "max_completion_tokens"
    chat(max_tokens=3, max_completion_tokens=3).check("tiny")


def test_the_engines_refusals_keep_their_names():
    for said, param, code in (
        ("prompt must have at most 5 tokens, got 6: shorten it", "prompt", "context_length_exceeded"),
        ("max_tokens must be at most 3 after a prompt of 5 tokens, got 9", "max_tokens", "context_length_exceeded"),
        ("prompt: its tokens must be from 0 to 8, got 9 at place 0", "prompt", None),
        ("this checkpoint has no chat template: give token ids", None, None),
    ):
        error = refused(ValueError(said))
        assert (error.status, error.param, error.code, error.message) == (400, param, code, said)
