"""Several prompts at once: each is answered as it is by itself."""

import inspect

import pytest

from llmsys.attention import naive_attention
from llmsys.models import Llama, NoCache, generate, generate_batch

PROMPTS = [[3, 14, 15, 9, 26], [5], [35, 8, 9, 7, 9, 32, 3, 8, 46], [5], [2, 6]]


@pytest.mark.parametrize("attention", ["sdpa", "tiled", "contiguous", naive_attention])
@pytest.mark.parametrize("options", [{}, {"temperature": 3.0, "seed": 4}], ids=["greedy", "drawn"])
def test_each_prompt_is_answered_as_by_itself(tiny, attention, options):
    said = generate_batch(tiny, PROMPTS, attention=attention, max_new_tokens=9, **options)
    assert len({tuple(each.tokens) for each in said}) > 1 and said[1].tokens == said[3].tokens
    for each, prompt in zip(said, PROMPTS, strict=True):
        alone = generate(tiny, prompt, max_new_tokens=9, **options)
        assert (each.tokens, each.prompt_tokens) == (alone.tokens, prompt)
        assert not each.stopped and each.text == "" and 0 < each.first_token_seconds < each.seconds


def test_one_whose_context_is_full_ends_and_the_others_go_on(tiny):
    said = generate_batch(tiny, [[1] * 61, [2, 3]], max_new_tokens=10)
    assert [len(each.tokens) for each in said] == [3, 10]
    assert said[1].tokens == generate(tiny, [2, 3], max_new_tokens=10).tokens
    assert said[0].seconds < said[1].seconds


def test_the_real_model_ends_its_turns_one_by_one(smollm2, monkeypatch):
    steps = []
    hidden = Llama.hidden
    monkeypatch.setattr(Llama, "hidden", lambda self, x, *more, **options: steps.append(x.shape[1])
                        or hidden(self, x, *more, **options))  # fmt: skip
    questions = ["What is the capital of France?", "Write a haiku about rain."]
    france, rain = generate_batch(smollm2, questions, max_new_tokens=12)
    assert steps == [len(france.prompt_tokens) + len(rain.prompt_tokens)] + [2] * 7 + [1] * 4
    assert france.text == "The capital of France is Paris." and france.stopped and not rain.stopped
    assert rain.tokens == generate(smollm2, questions[1], max_new_tokens=12).tokens


@pytest.mark.parametrize(
    "prompts, options, message",
    [
        ([], {}, "prompts must be a list of at least one prompt"),
        ("Hi", {}, "prompts must be a list of at least one prompt, got 'Hi'"),
        ([1, 2, 3], {}, "prompt must be a text, .* got int"),
        ([[1], []], {}, "prompt must not be empty"),
        ([[1], [61]], {}, "tokens must be from 0 to 60, got 61"),
        ([[1], [2] * 64], {}, "prompts must be shorter than the model's context of 64 tokens, got 64"),
        ([[1]], {"attention": NoCache()}, "attention must be a name or a function here"),
        ([[1]], {"attention": "tilde"}, "Did you mean 'tiled'"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ([[1]], {"top_k": 3}, "top_k has no effect at temperature 0"),
    ],
)
def test_what_is_asked_for_wrongly_is_named(tiny, prompts, options, message):
    bare = inspect.unwrap(generate_batch)  # without the checks of types that the tests add
    with pytest.raises(ValueError, match=message):
        bare(tiny, prompts, **options)
    part = Llama(tiny.config, layers=range(1))
    with pytest.raises(ValueError, match="model must be a whole one to generate"):
        generate_batch(part, [[1]])
