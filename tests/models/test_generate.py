"""Generation: the cache changes nothing, samplers see every position, and what is asked for wrongly is named."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from llmsys.attention import STAGES, naive_attention
from llmsys.models import ContiguousCache, Llama, NoCache, generate, greedy, stream_generate

PROMPT = [3, 14, 15, 9, 26]


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "hopper"])
def test_any_stage_with_and_without_a_cache_says_the_same(tiny, stage, cache):
    tokens = list(PROMPT)
    n = 5 if stage == "flash" else 12  # Triton's interpreter is slow
    for _ in range(n):
        tokens.append(int(tiny(torch.tensor([tokens]))[0, -1].argmax()))
    said = generate(tiny, PROMPT, attention=stage, cache=cache, max_new_tokens=n)
    assert said.tokens == tokens[5:]
    assert said.prompt_tokens == PROMPT
    assert not said.stopped


@pytest.mark.parametrize("cache", [True, False])
def test_a_sampler_sees_the_logits_of_all_positions(tiny, cache):
    seen = []

    def watching(logits):
        seen.append(logits.clone())
        return greedy(logits)

    said = generate(tiny, PROMPT, cache=cache, next_token=watching, max_new_tokens=6)
    whole = tiny(torch.tensor([PROMPT + said.tokens]))
    assert [x.shape for x in seen] == [(1, 5 + i, 61) for i in range(6)]
    for logits in seen:
        torch.testing.assert_close(logits, whole[:, : logits.shape[1]], atol=1e-4, rtol=1e-4)
    assert said.tokens == generate(tiny, PROMPT, max_new_tokens=6).tokens


def test_your_attention_is_given_the_whole_sequence_each_time(tiny):
    lengths = []

    def mine(q, k, v, *, causal, **more):
        lengths.append((q.shape[2], k.shape[2], causal))
        return naive_attention(q, k, v, causal=causal, **more)

    said = generate(tiny, PROMPT, attention=mine, max_new_tokens=3)
    assert lengths == [(T, T, True) for T in (5, 6, 7) for _ in range(2)]
    lengths.clear()
    assert generate(tiny, PROMPT, attention=mine, cache=True, max_new_tokens=3).tokens == said.tokens
    assert lengths == [(5, 5, True)] * 2 + [(1, 6, True)] * 2 + [(1, 7, True)] * 2


def test_a_backend_of_yours_is_used_as_it_is(tiny):
    cache = ContiguousCache(capacity=20)
    said = generate(tiny, PROMPT, attention=cache, max_new_tokens=4)
    assert said.tokens == generate(tiny, PROMPT, max_new_tokens=4).tokens
    assert cache.length == 5 + 3  # the last token was never fed
    assert cache.bytes == 2 * 2 * 1 * 2 * 20 * 8 * 4  # K and V, layers, B, Hkv, capacity, D, bytes


def test_a_seed_draws_the_same_text(tiny):
    def draw(seed):
        return generate(tiny, PROMPT, temperature=3.0, seed=seed, max_new_tokens=20).tokens

    assert draw(1) == draw(1) != draw(2)


def test_the_context_is_where_it_ends(tiny):
    said = generate(tiny, PROMPT * 12, max_new_tokens=100)
    assert len(said.tokens) == 64 - 60


def test_a_cache_in_pieces_gives_the_logits_of_the_whole(tiny):
    tokens = torch.randint(0, 61, (3, 23))
    cache = ContiguousCache(capacity=23)
    pieces = [tiny(part, cache) for part in tokens.split([1, 7, 1, 13, 1], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), tiny(tokens, NoCache()), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"temperature": 1.0, "seed": 2**64}, "seed must have at most 64 bits"),
        ({"temperature": -1.0}, "temperature must be"),
        ({"attention": "onlin"}, "Did you mean 'online'"),
        ({"attention": NoCache(), "cache": True}, "a backend owns its cache"),
        ({"next_token": greedy, "temperature": 1.0}, "next_token picks the token by itself"),
        ({"next_token": lambda logits: 3}, "must return an int64 tensor of shape .1,., got int"),
        ({"next_token": lambda logits: logits.argmax(-1)}, r"int64 of shape \(1, 5\) for logits of shape \(1, 5, 61\)"),
        ({"next_token": lambda logits: logits[:, -1, 0]}, "got torch.float32 of shape"),
        ({"next_token": lambda logits: torch.tensor([61])}, "ids from 0 to 60, got 61"),
        ({"attention": lambda q, k, v, **more: None}, "attention must return a tensor o .*got NoneType"),
        ({"attention": lambda q, k, v, **more: q[..., :4]}, r"attention must return o of shape .*got \(1, 6, 5, 4\)"),
    ],
)  # fmt: skip
def test_what_is_asked_for_wrongly_is_named(tiny, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(tiny, PROMPT, **arguments)


@pytest.mark.parametrize(
    "prompt, message",
    [
        ([], "prompt must not be empty"),
        ("", "prompt must not be empty"),
        ([1] * 64, "prompt must be shorter than the model's context of 64 tokens, got 64"),
        ([61], "tokens must be from 0 to 60"),
        ([1, -1], "tokens must be from 0 to 60, got -1 at place 1"),
        ([1, 2**70], "tokens must be from 0 to 60"),
        ("Hi", "has no tokenizer"),
        ([{"role": "user", "content": "Hi"}], "has no tokenizer"),
        (torch.tensor([[1, 2, 3], [4, 5, 6]]), r"one row of token ids.*got shape \(2, 3\)"),
        (np.array([[1, 2, 3], [4, 5, 6]]), r"one row of token ids.*got shape \(2, 3\)"),
        ([[1, 2, 3], [4, 5, 6]], "one row of token ids, got 2 rows"),
        ([torch.tensor([1, 2]), torch.tensor([3])], "one row of token ids, got 2 rows"),
        (torch.tensor(3), r"got shape \(\)"),
        (np.ones((1, 1, 2), int), r"got shape \(1, 1, 2\)"),
        (torch.zeros(0, dtype=torch.long), "prompt must not be empty"),
        (np.zeros((1, 0), int), "prompt must not be empty"),
        ([[]], "prompt must not be empty"),
        (torch.tensor([1.0, 2.0]), "whole numbers, got torch.float32"),
        (torch.tensor([True, False]), "whole numbers, got torch.bool"),
        (np.array([1.0, 2.0]), "whole numbers, got float64"),
        (np.array([True]), "whole numbers, got bool"),
        ([True, False], "one of it is True"),
        ([1, 2.0], "one of it is 2.0"),
        ([1, None], "one of it is None"),
        ([np.float32(1)], "whole numbers; one of it is"),
        ([torch.tensor(True)], "one of it is tensor"),
        (b"Hi", "got bytes"),
        (5, "got int"),
        (None, "got NoneType"),
        ({"input_ids": [1, 2]}, "got dict"),
    ],
)
def test_a_prompt_that_cannot_be_is_refused_before_anything_is_computed(tiny, prompt, message):
    def never(*arguments, **more):
        raise AssertionError("attention ran")

    with pytest.raises(ValueError, match=message):
        generate(tiny, prompt, attention=never)


@pytest.mark.parametrize(
    "prompt",
    [
        tuple(PROMPT),
        [PROMPT],
        *(torch.tensor(PROMPT, dtype=dtype) for dtype in (torch.int64, torch.int32, torch.int16, torch.uint8)),
        torch.tensor([PROMPT]),
        *(np.array(PROMPT, dtype=dtype) for dtype in (np.int64, np.int32, np.uint16, np.int8, np.uint64)),
        np.array([PROMPT]),
        np.array([PROMPT, PROMPT]).T[:, 0],  # strided
        list(np.array(PROMPT)),
        list(torch.tensor(PROMPT)),
        [np.array(PROMPT)],
    ],
    ids=lambda prompt: f"{type(prompt).__name__} {getattr(prompt, 'dtype', '')}",
)
def test_one_row_of_ids_is_a_prompt_from_whichever_library(tiny, prompt):
    said = generate(tiny, prompt, max_new_tokens=np.int64(1))
    assert said.prompt_tokens == PROMPT and {type(token) for token in said.prompt_tokens} == {int}


class TestNotFinite:
    """A model whose logits are NaN, +∞, or −∞ all of them says so, whoever picks the token."""

    @pytest.fixture
    def broken(self, tiny):
        """`broken(value, at)`: the tiny model, which gives tokens at those places that value for a logit."""

        def broken(value, at=slice(None)):
            model = Llama(tiny.config)
            model.load_state_dict(tiny.state_dict())
            head = model.head.forward

            def forward(x):
                logits = head(x)
                logits[..., at] = value
                return logits

            model.head.forward = forward
            return model.requires_grad_(False).eval()

        return broken

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"temperature": 1.0},
            {"temperature": 1.0, "top_k": 5},
            {"temperature": 1.0, "top_p": 0.5},
            {"next_token": lambda logits: logits[:, -1].argmax(-1)},
            {"next_token": lambda logits: logits[:, -1].argmax(-1), "cache": False},
        ],
        ids=["greedy", "sampled", "top_k", "top_p", "of one's own", "of one's own, no cache"],
    )
    @pytest.mark.parametrize(
        "value, at, named",
        [(float("nan"), 7, "NaN"), (float("inf"), 60, r"\+∞"), (float("-inf"), slice(None), "−∞ all of them")],
    )
    def test_is_an_error_in_words(self, broken, options, value, at, named):
        model = broken(value, at)
        with pytest.raises(FloatingPointError, match=rf"logits are not finite \({named}.*overflowed.*bfloat16"):
            generate(model, PROMPT, **options)

    def test_some_that_cannot_come_are_no_error(self, broken):
        model = broken(float("-inf"), slice(0, 60))
        for options in ({}, {"temperature": 5.0, "seed": 0}, {"next_token": greedy}):
            assert generate(model, PROMPT, max_new_tokens=3, **options).tokens == [60] * 3

    def test_a_token_of_ones_own_that_never_looks_is_warned_of_the_prompt_too(self, tiny):
        """NaN of an early place: the last row is finite."""
        calls = []

        def attention(q, k, v, **more):
            calls.append(1)
            o = naive_attention(q, k, v, **more)
            if len(calls) == 2:  # the last layer, where nothing mixes places any more
                o[:, :, 1] = float("nan")
            return o

        with pytest.raises(FloatingPointError, match="NaN"):
            generate(tiny, PROMPT, attention=attention, next_token=greedy)


def test_a_compiled_model_says_the_same(tiny):
    compiled = torch.compile(tiny, backend="eager")
    assert generate(compiled, PROMPT, max_new_tokens=3).tokens == generate(tiny, PROMPT, max_new_tokens=3).tokens


def test_bad_arguments_of_a_stream_are_refused_at_the_call(tiny, smollm2):
    with pytest.raises(ValueError, match="max_new_tokens"):
        stream_generate(smollm2, "Hi", max_new_tokens=0)
    with pytest.raises(ValueError, match="no tokenizer"):
        stream_generate(tiny, PROMPT)


def test_a_cache_that_is_full_says_so(tiny):
    cache = ContiguousCache(capacity=6)
    tiny(torch.tensor([PROMPT]), cache)
    with pytest.raises(ValueError, match="holds 5 tokens of at most 6, and 2 more do not fit"):
        tiny(torch.tensor([[1, 2]]), cache)
    with pytest.raises(ValueError, match="the cache's batch size, 1, got 2"):
        tiny(torch.tensor([[1], [2]]), cache)


def test_smollm2_ends_its_turn_and_streams_what_it_says(smollm2):
    question = "What is the capital of France?"
    pieces = []
    said = generate(smollm2, question, max_new_tokens=20, stream=pieces.append)
    assert said.text == "The capital of France is Paris." == "".join(pieces)
    assert said.stopped and 2 not in said.tokens
    assert said.tokens_per_second > 0 and 0 < said.first_token_seconds < said.seconds
    assert "".join(stream_generate(smollm2, [{"role": "user", "content": question}], max_new_tokens=20)) == said.text


def test_smollm2_babbles_when_the_maximum_is_taken_over_the_wrong_axis(smollm2):
    def over_positions(logits):
        return logits.argmax(dim=1)[:, -1]

    babble = generate(smollm2, "What is the capital of France?", next_token=over_positions, max_new_tokens=6)
    assert "Paris" not in babble.text and len(babble.tokens) == 6


def test_stopping_to_listen_leaves_torch_as_it_was(smollm2):
    pieces = stream_generate(smollm2, "Count to ten.", max_new_tokens=8)
    next(pieces)
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()


def test_importing_and_generating_needs_neither_triton_nor_transformers():
    script = """
import sys
sys.modules["triton"] = sys.modules["transformers"] = None  # importing them fails
import torch
from llmsys.models import Llama, LlamaConfig, generate
with torch.device("meta"):
    Llama(LlamaConfig("t", 11, 8, 1, 2, 1, 4, 8, 16))
print(len(generate(Llama(LlamaConfig("t", 11, 8, 1, 2, 1, 4, 8, 16)), [1, 2], max_new_tokens=3).tokens))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
