"""Lesson 11: its checks stand their self-test, take right answers by other ways and reject wrong ones; its right
answers are what trying everything finds; an order moves a model's cache."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmsys.lessons.lesson_11_disaggregation import right
from llmsys.lessons.lesson_11_disaggregation.sending import Kept, Sending, decode, prefill
from llmsys.lessons.lesson_11_disaggregation.wire import Wire, in_the_open, lanes
from llmsys.models import Llama, LlamaConfig, generate
from llmsys.serving import Request
from llmsys.serving.goodput import highest_rate
from llmsys.serving.routing import Engines, PrefixAware
from tests.lessons import answers_11
from tests.support.self_tests import assert_check_stands, exercises_of
from tests.support.verdicts import assert_rejected, assert_taken, verdict


def answers(of):
    return [pytest.param(id, each, id=f"{id}-{each.__name__}") for id, some in of.items() for each in some]


@pytest.mark.parametrize("exercise", exercises_of("11"))
def test_the_check_stands_its_self_test(exercise):
    assert_check_stands(exercise)


@pytest.mark.parametrize("exercise, answer", answers(answers_11.RIGHT))
def test_right_answers_by_other_ways_are_taken(exercise, answer):
    assert_taken(exercise, answer)


@pytest.mark.parametrize("exercise, answer", answers(answers_11.WRONG))
def test_wrong_answers_that_nobody_has_named_are_rejected(exercise, answer):
    assert_rejected(exercise, answer)


def test_the_librarys_own_search_is_refused():
    def librarys(attained, *, gpus, low, high, share=0.9, within=0.02):
        return highest_rate(attained, low=low, high=high, share=share, within=within) / gpus

    assert verdict("11.goodput", librarys).failure.kind == "forbidden"


@pytest.mark.parametrize("exercise, answer, words", answers_11.NAMED)
def test_a_mistake_is_named_whatever_the_order_of_the_questions(exercise, answer, words):
    assert words in str(verdict(exercise, answer, name_mistakes=True))


# What the right answers are


@given(st.floats(1.1, 900), st.sampled_from([1, 2, 8]), st.sampled_from([0.5, 0.9]), st.sampled_from([0.3, 0.02]))
def test_goodput_is_what_the_library_finds(knee, gpus, share, within):
    def attained(rate):
        return share if rate <= knee else share - 0.1

    asked = dict(low=1.0, high=1000.0, share=share, within=within)
    assert right.goodput_per_gpu(attained, gpus=gpus, **asked) == highest_rate(attained, **asked) / gpus


@given(st.integers(2, 40), st.integers(0, 10**6))
def test_a_division_is_the_best_of_all(gpus, seed):
    draw = random.Random(seed)
    steps = [[draw.choice((0.1, 1.0, 7.0)) * draw.random() for _ in range(gpus - 1)] for _ in range(2)]
    prefill_rates, decode_rates = ([sum(each[: n + 1]) for n in range(gpus - 1)] for each in steps)

    def rate(p):
        return min(prefill_rates[p - 1], decode_rates[gpus - p - 1])

    p, d = right.divide(gpus, lambda n: prefill_rates[n - 1], lambda n: decode_rates[n - 1])
    assert p + d == gpus and rate(p) == max(map(rate, range(1, gpus)))


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 30), st.integers(1, 30))
def test_what_an_order_leaves_in_the_open_is_the_formula_with_two_buffers_or_more(layers, buffers, compute, send):
    left = in_the_open(right.transfer_order(layers, buffers), compute=compute, send=send)
    if buffers > 1 or layers == 1:
        assert left == max(send, layers * send - (layers - 1) * compute)
    else:
        assert left == layers * send, "one buffer: computing and sending take turns"


@given(st.integers(1, 99), st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=6),
       st.sampled_from([0.0, 1.0, 4.0]))  # fmt: skip
def test_a_route_is_the_librarys(tokens, pairs, weight):
    hits, held = [hit for hit, _ in pairs], [other for _, other in pairs]
    n = len(pairs)
    engines = Engines("both", [f"both {i}" for i in range(n)], [0] * n, held, [999] * n, 16, lambda: hits)
    request = Request("a", range(tokens))
    assert right.route(request, engines, weight) == PrefixAware(weight)(request, engines)


def test_lanes_refuse_what_cannot_be_done():
    for wrong, words in (([("send", 0)], "sent before it is computed"), ([("wait", 0)], "waited for before it is sent"),
                         ([("fetch", 0)], "compute, send or wait")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            lanes(wrong, compute=1, send=1)


# The wire


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig("tiny", 50, 32, 7, heads=4, kv_heads=2, head_size=8, mlp_size=32, context_length=64)
    return Llama(config).eval()


PROMPT = [3, 14, 15, 9, 26, 5]


@pytest.mark.parametrize("buffers", [1, 2, 3, 7, 9])
def test_a_cache_that_was_sent_goes_on_as_its_own_would(model, buffers):
    with Wire(buffers) as wire:
        first = prefill(model, PROMPT, Sending(wire, right.transfer_order(7, buffers)))
    assert decode(model, first, Kept.of(wire.received), tokens=9) == generate(model, PROMPT, max_new_tokens=9).tokens


def test_an_order_that_overwrites_buffers_sends_other_layers(model):
    careless = [(what, layer) for what in ("compute", "send", "wait") for layer in range(7)]
    kept = Kept()
    prefill(model, PROMPT, kept)
    with Wire(2) as wire:
        prefill(model, PROMPT, Sending(wire, careless))
    for layer in range(7):
        in_its_buffer = 6 if layer % 2 == 0 else 5
        assert torch.equal(wire.received[layer][0], kept.layers[in_its_buffer][0])


def test_an_order_of_other_layers_than_the_model_s_is_refused(model):
    for layers, words in ((6, "must compute layer 6"), (8, "order goes on with")):
        with Wire(2) as wire, pytest.raises(ValueError, match=words):
            prefill(model, PROMPT, Sending(wire, right.transfer_order(layers, 8)))
    with Wire(2) as wire, pytest.raises(ValueError, match="layer 0 is waited for before it is sent"):
        prefill(model, PROMPT, Sending(wire, [("wait", 0)]))
