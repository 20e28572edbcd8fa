"""Lesson 14: its checks stand their self-test, take right answers by other ways and reject wrong ones; its right
answers are the library's functions, over any sizes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.lessons.lesson_14_mixture_of_experts import right
from llmsys.moe import MixtureOfExperts, RouterConfig, balance_loss, move_bias, route_sigmoid, run_experts
from tests.lessons import answers_14
from tests.support.self_tests import assert_check_stands, exercises_of
from tests.support.verdicts import assert_rejected, assert_taken, verdict


def answers(of):
    return [pytest.param(id, each, id=f"{id}-{each.__name__}") for id, some in of.items() for each in some]


@pytest.mark.parametrize("exercise", exercises_of("14"))
def test_the_check_stands_its_self_test(exercise):
    assert_check_stands(exercise)


@pytest.mark.parametrize("exercise, answer", answers(answers_14.RIGHT))
def test_right_answers_by_other_ways_are_taken(exercise, answer):
    assert_taken(exercise, answer)


@pytest.mark.parametrize("exercise, answer", answers(answers_14.WRONG))
def test_wrong_answers_that_nobody_has_named_are_rejected(exercise, answer):
    assert_rejected(exercise, answer)


def test_the_librarys_own_are_refused():
    def by_the_layer(x, experts, weights, gate_up, down):
        return run_experts(x, experts, weights, gate_up, down)

    def by_the_loss(routing, *, sequences=1):
        return balance_loss(routing, sequences=sequences)

    for name, answer in (("dispatch", by_the_layer), ("sequence_loss", by_the_loss), ("router", right.route)):
        exercise = f"14.{name}"
        assert verdict(exercise, answer).failure.kind == "forbidden"


sizes = st.tuples(
    st.integers(0, 9), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**32 - 1)
)  # tokens, groups, experts of each


@settings(max_examples=40, deadline=None)
@given(sizes, st.data())
def test_the_right_router_is_the_librarys(sizes, data):
    N, groups, each, seed = sizes
    kept = data.draw(st.integers(1, groups))
    k = data.draw(st.integers(1, kept * each))
    generator = torch.Generator().manual_seed(seed)
    logits, bias = (torch.randn(shape, generator=generator) for shape in ((N, groups * each), (groups * each,)))
    options = {"bias": bias, "groups": groups, "kept_groups": kept, "scale": 2.5}
    got, expected = right.route(logits, k, **options), route_sigmoid(logits, k, **options)
    assert torch.equal(got.experts, expected.experts)
    assert torch.equal(got.weights, expected.weights) and torch.equal(got.scores, expected.scores)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9), st.integers(1, 7), st.integers(0, 2**32 - 1), st.data())
def test_the_right_experts_are_the_librarys(N, E, seed, data):
    K = data.draw(st.integers(1, E))
    generator = torch.Generator().manual_seed(seed)
    x, w, gate_up, down = (torch.randn(shape, generator=generator) for shape in ((N, 5), (N, K), (E, 6, 5), (E, 5, 3)))
    experts = torch.rand(N, E, generator=generator).argsort(-1)[:, :K]
    experts = torch.where(torch.rand(N, K, generator=generator) < 0.2, -1, experts)
    got = right.run_grouped(x, experts, w, gate_up, down)
    torch.testing.assert_close(got, run_experts(x, experts, w, gate_up, down, form="loop"))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**32 - 1), st.data())
def test_the_right_loss_and_the_right_bias_are_the_librarys(S, T, E, seed, data):
    K = data.draw(st.integers(1, E))
    routing = route_sigmoid(torch.randn(S * T, E, generator=torch.Generator().manual_seed(seed)), K)
    torch.testing.assert_close(right.sequence_loss(routing, sequences=S), balance_loss(routing, sequences=S))
    got, expected = torch.zeros(E), torch.zeros(E)
    right.move_bias(got, routing.loads, 0.25)
    move_bias(expected, routing.loads, 0.25)
    assert torch.equal(got, expected)


def test_a_readers_router_and_experts_take_their_places_in_the_layer():
    config = RouterConfig(8, 2, "sigmoid", scale=2.5, bias=True, groups=4, kept_groups=2)
    layers = [
        MixtureOfExperts(6, 5, config, route=route, form=form)
        for route, form in ((None, "loop"), (answers_14.token_by_token, answers_14.back_by_the_inverse))
    ]
    layers[1].load_state_dict(layers[0].state_dict())
    x = torch.randn(2, 7, 6)
    torch.testing.assert_close(layers[1](x)[0], layers[0](x)[0])
