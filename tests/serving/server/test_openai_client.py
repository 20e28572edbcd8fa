"""What OpenAI's own client makes of the server; and the answers are those of the engine."""

import asyncio

import pytest

from llmsys.serving import Engine, SamplingParams
from tests.serving.server.running import NAME, serving

openai = pytest.importorskip("openai")

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Où est-il ? 😀"}]


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture(scope="module")
def alone(model):
    """What another engine says, with nobody else in it."""
    engine = Engine(model, num_blocks=400, block_size=4)
    return lambda tokens, **params: engine.generate([tokens], [SamplingParams(**params)])[0]


def chat(model, messages=MESSAGES):
    return model.tokenizer.chat(messages)


def test_a_chat(client, model, alone):
    said = client.chat.completions.create(model=NAME, messages=MESSAGES, temperature=0, max_tokens=20)
    expected = alone(chat(model), max_tokens=20)
    choice = said.choices[0]
    assert choice.message.role == "assistant" and choice.message.content == expected.text
    assert choice.finish_reason == expected.answers[0].reason and choice.logprobs is None
    assert said.object == "chat.completion" and said.model == NAME
    assert said.usage.prompt_tokens == len(chat(model))
    assert said.usage.completion_tokens == expected.answers[0].metrics.output_tokens
    assert said.usage.total_tokens == said.usage.prompt_tokens + said.usage.completion_tokens


def test_a_streamed_chat_is_the_same_piece_by_piece(client, model, alone):
    stream = client.chat.completions.create(
        model=NAME, messages=MESSAGES, temperature=0, max_tokens=40, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    expected = alone(chat(model), max_tokens=40)
    *pieces, last = chunks
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(each.choices[0].delta.content or "" for each in pieces) == expected.text
    assert [each.choices[0].finish_reason for each in pieces if each.choices[0].finish_reason] == ["length"]
    assert len(pieces) > 10, "it came in pieces"
    assert {each.id for each in chunks} == {last.id} and all(each.usage is None for each in pieces)
    assert last.choices == [] and last.usage.completion_tokens == 40
    assert last.usage.prompt_tokens == len(chat(model))


def test_without_being_asked_a_stream_says_no_usage(client):
    stream = client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=2, stream=True)
    assert all(each.choices and each.usage is None for each in stream)


def test_a_completion_continues_a_text_as_it_is(client, model, alone):
    said = client.completions.create(model=NAME, prompt="Il était", temperature=0)
    expected = alone(model.tokenizer.encode("Il était"), max_tokens=16)
    assert said.choices[0].text == expected.text and said.object == "text_completion"
    assert said.usage.prompt_tokens == len(model.tokenizer.encode("Il était"))
    stream = client.completions.create(model=NAME, prompt="Il était", temperature=0, stream=True)
    assert "".join(each.choices[0].text for each in stream) == expected.text


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_and_answers_are_choices_in_order(client, alone, stream):
    prompts = [[5, 6, 7], [80, 81], [200]]
    said = client.completions.create(model=NAME, prompt=prompts, n=2, temperature=0, max_tokens=9, stream=stream)
    expected = [alone(prompt, max_tokens=9).text for prompt in prompts for _ in range(2)]
    if not stream:
        assert [choice.text for choice in said.choices] == expected
        assert [choice.index for choice in said.choices] == list(range(6))
        assert said.usage.prompt_tokens == 6, "each prompt is counted once"
        return
    texts = [""] * 6
    for chunk in said:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == expected


def test_a_seed_draws_the_same_again_and_n_answers_are_others(client):
    def draw(seed):
        said = client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=12, n=3, seed=seed)
        return [choice.message.content for choice in said.choices]

    first = draw(5)
    assert draw(5) == first and len(set(first)) == 3 and draw(-6) != first


def test_parameters_reach_the_sampler(client, alone):
    """Beyond OpenAI's in `extra_body`; at temperature 0 those that draw have no effect, and are no error."""
    asked = dict(temperature=0.7, top_p=0.9, seed=3, max_tokens=12)
    more = dict(top_k=7, min_p=0.02, stop_token_ids=[9], ignore_eos=True)
    said = client.completions.create(model=NAME, prompt=[5, 6, 7], extra_body=more, **asked)
    assert said.choices[0].text == alone([5, 6, 7], **asked, **more).text
    greedy = client.completions.create(
        model=NAME, prompt=[5, 6, 7], temperature=0, top_p=0.5, extra_body={"top_k": 3, "min_p": 0.1}
    )
    assert greedy.choices[0].text == alone([5, 6, 7], max_tokens=16).text
    nothing = client.completions.create(model=NAME, prompt=[5, 6, 7], seed=4, extra_body={"top_k": -1, "min_p": 0})
    assert nothing.choices[0].text == alone([5, 6, 7], temperature=1, seed=4, max_tokens=16).text


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_text_before_it(client, alone, stream):
    whole = alone([5, 6, 7], max_tokens=40).text
    middle = len(whole) // 2
    stop = [whole[middle : middle + 2], "never said"]
    said = client.completions.create(
        model=NAME, prompt=[5, 6, 7], temperature=0, max_tokens=40, stop=stop, stream=stream
    )
    chunks = list(said) if stream else [said]
    assert "".join(each.choices[0].text for each in chunks) == whole[: whole.index(stop[0])]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_characters_are_never_cut_in_two(client, alone):
    """Tokens are bytes here, so each é, € and 😀 takes several; what is no UTF-8 at all is U+FFFD either way."""
    stream = client.completions.create(model=NAME, prompt="é€😀", max_tokens=200, seed=1, stream=True)
    pieces = [each.choices[0].text for each in stream]
    whole = client.completions.create(model=NAME, prompt="é€😀", max_tokens=200, seed=1)
    assert "".join(pieces) == whole.choices[0].text


def test_the_end_token_ends_an_answer(client, model, monkeypatch):
    head = model.head.forward

    def at_once(x):
        logits = head(x)
        logits[..., 1] = 1e4
        return logits

    monkeypatch.setattr(model.head, "forward", at_once)
    said = client.completions.create(model=NAME, prompt="a", max_tokens=9)
    assert said.choices[0].text == "" and said.choices[0].finish_reason == "stop"
    assert said.usage.completion_tokens == 1
    going_on = client.completions.create(model=NAME, prompt="a", max_tokens=9, extra_body={"ignore_eos": True})
    assert going_on.usage.completion_tokens == 9 and going_on.choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_of_a_chat(client, model, alone, stream):
    said = client.chat.completions.create(
        model=NAME, messages=MESSAGES, temperature=0, max_tokens=12, logprobs=True, top_logprobs=3, stream=stream
    )
    expected = alone(chat(model), max_tokens=12, logprobs=3).answers[0]
    chunks = list(said) if stream else [said]
    content = [each for chunk in chunks if chunk.choices[0].logprobs for each in chunk.choices[0].logprobs.content]
    assert [each.logprob for each in content] == pytest.approx([each.logprob for each in expected.logprobs])
    spelled = b"".join(bytes(each.bytes) for each in content)
    assert spelled.decode("utf-8", "replace") == expected.text
    for each, theirs in zip(content, expected.logprobs, strict=True):
        assert [top.logprob for top in each.top_logprobs] == pytest.approx([p for _, p in theirs.top])
        assert each.top_logprobs[0].bytes == each.bytes, "greedy: the likeliest is the one"
    assert any(each.token.startswith("bytes:\\x") for each in content), "half a character is shown by its bytes"


def test_log_probabilities_of_a_completion(client, alone):
    said = client.completions.create(model=NAME, prompt=[5, 6], temperature=0, max_tokens=7, logprobs=2)
    expected = alone([5, 6], max_tokens=7, logprobs=2).answers[0]
    found = said.choices[0].logprobs
    assert found.token_logprobs == pytest.approx([each.logprob for each in expected.logprobs])
    assert len(found.tokens) == len(found.top_logprobs) == len(found.text_offset) == 7
    assert found.text_offset[0] == 0 and sorted(found.text_offset) == found.text_offset
    none = client.completions.create(model=NAME, prompt=[5, 6], max_tokens=3, logprobs=0)
    assert none.choices[0].logprobs.top_logprobs == [{}, {}, {}]


def test_content_may_be_in_parts_and_a_developer_is_the_system(client, model):
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    messages = [{"role": "developer", "content": parts}, MESSAGES[1]]
    asked = dict(model=NAME, temperature=0, max_completion_tokens=9)
    whole = client.chat.completions.create(messages=MESSAGES, **asked)
    in_parts = client.chat.completions.create(messages=messages, **asked)
    assert in_parts.choices[0].message.content == whole.choices[0].message.content


def test_an_answer_can_be_sent_back_as_the_client_dumps_it(client):
    said = client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=4)
    again = [*MESSAGES, said.choices[0].message.model_dump(), {"role": "user", "content": "More."}]
    assert client.chat.completions.create(model=NAME, messages=again, max_tokens=4).choices


def test_a_second_question_finds_the_first_in_the_cache(client):
    said = [client.completions.create(model=NAME, prompt="the same beginning " * 3 + each) for each in "ab"]
    assert said[1].usage.prompt_tokens_details.cached_tokens >= 50


def test_models(client):
    assert [each.id for each in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError, match="no model 'org/other'"):
        client.models.retrieve("org/other")


def test_what_the_client_raises_for_what(client):
    with pytest.raises(openai.NotFoundError) as gone:
        client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    assert gone.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=NAME, messages=MESSAGES, tools=[{"type": "function"}])
    assert refused.value.param == "tools" and refused.value.code == "unsupported"
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model=NAME, prompt="a" * 700, stream=True)
    assert too_long.value.code == "context_length_exceeded" and "at most 599 tokens, got 700" in too_long.value.message


def test_a_model_with_a_start_token_and_no_chat_template(model, monkeypatch):
    monkeypatch.setattr(model.tokenizer, "bos_id", 0)
    monkeypatch.setattr(model.tokenizer, "chat_template", None)
    with serving(model) as running, openai.OpenAI(base_url=f"{running.url}/v1", api_key="any") as client:
        assert client.completions.create(model=NAME, prompt="abc").usage.prompt_tokens == 4
        assert client.completions.create(model=NAME, prompt=[5, 6, 7]).usage.prompt_tokens == 3, "ids are as they are"
        with pytest.raises(openai.BadRequestError, match="no chat template.*completion"):
            client.chat.completions.create(model=NAME, messages=MESSAGES)


def test_with_a_key(model):
    with serving(model, api_key="sésame") as running:
        for key, right in (("sésame", True), ("sesame", False), ("", False)):
            headers = {} if key == "" else {"Authorization": f"Bearer {key}".encode()}
            assert running.get("/v1/models", headers=headers).status_code == (200 if right else 401)
    with serving(model, api_key="secret") as running:
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key="other", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError, match="API key"):
                client.completions.create(model=NAME, prompt="a")
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key="secret") as client:
            assert client.completions.create(model=NAME, prompt="a").choices


def test_many_at_once_each_get_their_own(served, alone):
    prompts = [[n, n + 1, n + 2] for n in range(5, 45)]

    async def go():
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0, timeout=60) as client:

            async def one(prompt):
                stream = await client.completions.create(
                    model=NAME, prompt=prompt, temperature=0, max_tokens=12, stream=True
                )
                return "".join([chunk.choices[0].text async for chunk in stream])

            return await asyncio.gather(*map(one, prompts))

    assert asyncio.run(go()) == [alone(prompt, max_tokens=12).text for prompt in prompts]
