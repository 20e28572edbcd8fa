"""Lesson 11: its checks stand their self-test, take right answers by other ways and reject wrong ones; its right
answers are what trying everything finds; an order moves a model's cache; its pictures show what they say."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.lessons.lesson_11_disaggregation import right
from llmsys.lessons.lesson_11_disaggregation.sending import Kept, Sending, decode, prefill
from llmsys.lessons.lesson_11_disaggregation.wire import Wire, in_the_open, lanes
from llmsys.models import Llama, LlamaConfig, generate
from llmsys.serving.goodput import Limits, highest_rate
from llmsys.serving.simulator import Placed, Placement
from llmsys.viz.disaggregation import goodputs, interference, order, overview, stepper
from llmsys.viz.disaggregation.overview import longest_wait, served
from llmsys.viz.disaggregation.stepper import describe, draw
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


# Pictures


def test_the_overview_says_the_waits_that_its_logs_have():
    found = [1e3 * longest_wait(served(each)) for each in (Placement(colocated=1), Placement(prefill=1, decode=1))]
    alt = overview().alt
    assert f"for {found[0]:.0f} ms at the longest" in alt and f"is {found[1]:.0f} ms" in alt and found[1] < found[0] / 3


def test_the_stepper_says_what_the_text_says_of_it():
    shown = stepper()

    def ends(rate, bandwidth):
        shown.set(rate=rate, bandwidth=bandwidth)
        frame = shown.frames[-1]
        return {name: (frame.met(name)[1], [frame.late(each) for each in frame.lives[name]]) for name in frame.lives}

    assert {name: met for name, (met, _) in ends(4, 50e9).items()} == {"colocated": 14, "disaggregated": 14}
    at_12 = ends(12, 50e9)
    assert at_12["colocated"][1].count("TPOT") == 10 and at_12["disaggregated"][0] == 14
    assert ends(20, 50e9)["disaggregated"][1] == [""] * 6 + ["TTFT"] * 8
    for rate in (4, 12, 20):
        assert ends(rate, 1.25e9)["disaggregated"][0] == 0


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([4, 12, 20]), st.integers(0, 23))
def test_every_frame_is_drawn_and_says_in_words_how_many_have_ended(rate, step):
    shown = stepper()
    shown.set(rate=rate, bandwidth=50e9)
    frame = shown.frames[step]
    ended = sum(each.ended <= frame.now for each in frame.lives["colocated"])
    assert f"colocated: {ended} of 14 have ended" in describe(frame) and draw(frame).markup()


def test_charts_say_their_numbers_and_refuse_what_they_cannot_draw():
    shown = interference([0, 8], {"one": [(0.005, 0.01), (0.0134, 0.02)]})
    assert "13.4 at 8" in shown.alt
    with pytest.raises(ValueError, match="must have a pair for each of 2 rates, got 1"):
        interference([0, 8], {"one": [(0.005, 0.01)]})
    placed = Placed(Placement(prefill=1, decode=1), 12.0, 0.2, 0.005)
    said = goodputs([("a", placed)], Limits(0.5, 0.01)).alt
    assert "6.0 a second and GPU, at 40% of the limit to TTFT and 50%" in said
    with pytest.raises(ValueError, match="at least one placement"):
        goodputs([], Limits(0.5, 0.01))
    with pytest.raises(ValueError, match="a TTFT and a TPOT"):
        goodputs([("a", placed)], Limits(0.5))
    bars = [(each.lane, each.layer, each.start, each.end) for each in
            lanes(right.transfer_order(4, 2), compute=1, send=0.5)]  # fmt: skip
    assert "yours: 4.5" in order([("yours", bars)]).alt
    with pytest.raises(ValueError, match="at least one order"):
        order([])
